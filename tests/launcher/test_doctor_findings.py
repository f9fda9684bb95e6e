"""What is well, what is not, and how it is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ollampi.launcher.doctor_checks import CHECKS, Finding, failed, found, lines, objects, sum_limit_ms
from ollampi.launcher.doctor_hosts import host_findings
from ollampi.launcher.doctor_network import (
    clock_findings,
    folder_findings,
    link_findings,
    model_findings,
    sum_findings,
)
from ollampi.mpiruntime.doctor_words import SUM_BYTES

ROOT = Path(__file__).resolve().parent.parent.parent
GB, MIB = 10**9, 1 << 20
FACTS: dict[str, Any] = {
    "host": "a",
    "ranks": 2,
    "cores": 8,
    "usable_cores": 8,
    "all_cores": 8,
    "load": 0.8,
    "memory_total": 64 * GB,
    "memory_free": 60 * GB,
    "memory_own": None,
    "gpus": [],
    "torch_gpus": 0,
    "shm_total": 32 * GB,
    "shm_free": 32 * GB,
    "open_files": 65536,
    "locked_memory": 8 * MIB,
    "infiniband": False,
    "ports": 28232,
    "python": "3.11.7",
    "ollampi": "0.1.0",
    "packages": {"numpy": "2.4.6", "torch": "2.13.0"},
    "kernels": "AVX2",
}
GPU = {"name": "H100", "memory_total": 80 * GB, "memory_free": 79 * GB, "driver": "570.1"}


def of(findings: list[Finding], check: str) -> list[tuple[str, Any]]:
    """Return status and value of a check's findings."""
    return [(each.status, each.value) for each in findings if each.check == check]


def test_a_good_host_is_well_in_all_ways() -> None:
    findings = host_findings([FACTS, FACTS | {"host": "b"}])
    assert {each.status for each in findings} == {"ok"}
    assert {each.hosts[0] for each in findings} == {"a", "b"}
    assert all(each.remedy == "" for each in findings)


@pytest.mark.parametrize(
    ("change", "check", "status", "value"),
    [
        ({"usable_cores": 3}, "cores", "warning", "3 of 8"),
        ({"usable_cores": 4}, "cores", "ok", "4 of 8"),
        ({"ranks": 9}, "ranks", "warning", 9),
        ({"ranks": 8}, "ranks", "ok", 8),
        ({"memory_total": 15 * GB}, "memory", "warning", 15.0),
        ({"memory_total": 16 * GB}, "memory", "ok", 16.0),
        ({"memory_free": 3 * GB}, "memory free", "warning", 3.0),
        ({"memory_own": 2 * GB}, "memory free", "warning", 2.0),
        ({"memory_own": 90 * GB}, "memory free", "ok", 60.0),
        ({"load": 4.8}, "load", "warning", 0.6),
        ({"load": 4.0}, "load", "ok", 0.5),
        ({"shm_free": 63 * MIB}, "shared memory", "warning", 63.0),
        ({"shm_free": 64 * MIB}, "shared memory", "ok", 64.0),
        ({"open_files": 1023}, "open files", "warning", 1023),
        ({"open_files": None}, "open files", "ok", "unlimited"),
        ({"infiniband": True}, "locked memory", "warning", 8.0),
        ({"infiniband": True, "locked_memory": None}, "locked memory", "ok", "unlimited"),
        ({"locked_memory": 65536}, "locked memory", "ok", 0.1),
        ({"ports": 999}, "port range", "warning", 999),
        ({"kernels": ""}, "kernels", "warning", "none: torch computes"),
        ({"gpus": [GPU], "torch_gpus": 1}, "gpus", "ok", "1 x H100, 80 GB, driver 570.1"),
        ({"gpus": [GPU, GPU]}, "gpus", "warning", "2 x H100, 80 GB, driver 570.1, of which torch sees none"),
        ({"torch_gpus": 2}, "gpus", "ok", "2 (by torch)"),
        ({"gpus": [GPU], "torch_gpus": 1}, "gpu memory", "ok", 80.0),
        ({"gpus": [GPU, GPU | {"memory_total": 16 * GB}], "torch_gpus": 2}, "gpu memory", "warning", 16.0),
    ],
)
def test_each_limit_of_a_host(change: dict[str, Any], check: str, status: str, value: Any) -> None:
    assert of(host_findings([FACTS | change]), check) == [(status, value)]


@pytest.mark.parametrize(
    ("change", "check", "status", "value"),
    [
        ({"python": "3.12.1"}, "python", "warning", "3.12.1"),
        ({"ollampi": "0.2.0"}, "ollampi", "error", "0.2.0"),
        ({"packages": {"numpy": "2.4.5", "torch": "2.13.0"}}, "packages", "warning", "numpy 2.4.5"),
        ({"packages": {"numpy": "", "torch": "2.13.0"}}, "packages", "warning", "no numpy"),
        ({"kernels": "AVX-512 VNNI"}, "kernels", "warning", "AVX-512 VNNI"),
        ({"gpus": [GPU], "torch_gpus": 1}, "gpus", "warning", "1 x H100, 80 GB, driver 570.1"),
    ],
)
def test_a_host_that_differs_is_named(change: dict[str, Any], check: str, status: str, value: str) -> None:
    hosts = [FACTS | {"host": name} for name in "abc"]
    findings = host_findings([*hosts[:2], hosts[2] | change])
    (other,) = [each for each in findings if each.status != "ok"]
    assert (other.check, other.status, other.value, other.hosts) == (check, status, value, ["c"])
    assert other.remedy == CHECKS[check].remedy


def test_links_are_held_against_2_ms_and_1_gbit() -> None:
    findings = link_findings([["a", "b", 0.0019, 1.3e8], ["a", "c", 0.0021, 1.2e8], ["d", "d", 1e-5, 1e9]])
    assert of(findings, "latency") == [("ok", 1.9), ("warning", 2.1), ("ok", 0.01)]
    assert of(findings, "bandwidth") == [("ok", 1040.0), ("warning", 960.0), ("ok", 8000.0)]
    assert [each.hosts for each in findings[::2]] == [["a", "b"], ["a", "c"], ["d"]]
    assert findings[0].limit == 2.0
    assert findings[1].limit == 1000.0


def test_a_sum_may_take_a_round_trip_and_twice_its_bytes_at_1_gbit() -> None:
    assert [sum_limit_ms(size) for size in SUM_BYTES] == [2.1, 3.0, 18.8, 270.4]
    findings = sum_findings([(size, sum_limit_ms(size) / 1e3) for size in SUM_BYTES])
    assert {each.status for each in findings} == {"ok"}
    assert {each.status for each in sum_findings([(size, 0.28) for size in SUM_BYTES])} == {"warning"}
    assert [each.check for each in findings] == [name for name in CHECKS if name.startswith("all-reduce")]


def test_clocks_may_differ_by_a_second_and_the_doubt() -> None:
    findings = clock_findings([["b", 0.9, 0.0], ["c", -1.2, 0.1], ["d", 1.2, 0.3]])
    assert of(findings, "clock") == [("ok", 0.9), ("warning", -1.2), ("ok", 1.2)]


def test_a_shared_folder_is_seen_by_all_or_an_error() -> None:
    good = {"write_s": 0.1, "read_s": 0.2, "free": 200 * GB}
    findings = folder_findings([good, {"write_s": 0.1, "free": GB, "error": "No such file"}], ["a", "b"], 20_000_000)
    assert of(findings, "shared folder") == [("ok", "seen"), ("error", "No such file")]
    assert of(findings, "folder write") == [("ok", 200.0), ("ok", 200.0)]
    assert of(findings, "folder read") == [("warning", 100.0)]
    assert of(findings, "folder room") == [("ok", 200.0), ("warning", 1.0)]


def test_a_model_is_the_same_everywhere_and_fits() -> None:
    files = {"/m/config.json": "1", "/m/model.safetensors": "2"}
    other = files | {"/m/model.safetensors": "3"}
    error = {"error": "No such file or directory: /m"}
    findings = model_findings([files, other, error, files], list("abcd"), 2 * GB, [4 * GB, 4 * GB, 4 * GB, GB])
    assert of(findings, "model") == [
        ("ok", "2 GB of 4 free"),
        ("error", "another /m/model.safetensors than on a"),
        ("error", "No such file or directory: /m"),
        ("error", "takes 2 GB of 1 free"),
    ]


def test_a_line_for_each_check_and_status_worst_first() -> None:
    findings = [
        found("latency", "ok", 0.5, ["a", "b"]),
        found("latency", "warning", 3.25, ["a", "c"]),
        found("latency", "ok", 0.25, ["b", "c"]),
        found("mpi", "ok", "Open MPI 5.0.11"),
        found("start", "error", "no\nrank \x1b[1m", ["d"]),
    ]
    told = lines(findings).splitlines()
    assert [line.split()[:2] for line in told] == [
        ["ok", "mpi"],
        ["error", "start"],
        ["warning", "latency"],
        ["ok", "latency"],
    ]
    assert told[1].startswith(
        "error    start              no rank \ufffd[1m (d); wanted: all hosts; remedy: look at the host"
    )
    assert told[2].startswith(
        "warning  latency            3.25 ms (a - c); wanted: 2 ms; remedy: use hosts that are closer"
    )
    assert told[3] == "ok       latency            0.25 to 0.5 ms (a - b, b - c)"
    assert failed(findings)
    assert not failed(findings[:4])


def test_what_is_well_on_many_hosts_names_none_of_them() -> None:
    told = lines([found("cores", "ok", 8, [f"n{i}"]) for i in range(9)])
    assert told == "ok       cores              8 (9 of 9)\n"
    told = lines([found("python", "warning", f"3.{i}", [f"n{i}"]) for i in range(5)])
    assert "3.0; 3.1; 3.2; and 2 more (n0, n1, n2, n3, n4); wanted: the same on all hosts; remedy:" in told


def test_objects_have_the_fields_that_are_documented() -> None:
    (told,) = objects([found("bandwidth", "warning", 123.456, ["a", "b"])])
    assert told == {
        "check": "bandwidth",
        "status": "warning",
        "value": 123.5,
        "unit": "Mbit/s",
        "limit": 1000.0,
        "remedy": CHECKS["bandwidth"].remedy,
        "hosts": ["a", "b"],
    }


def test_the_documents_table_is_that_of_the_checks() -> None:
    text = (ROOT / "docs" / "doctor.md").read_text()
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in re.findall(r"^\| .* \|$", text, re.M)]
    table = [
        [
            check.name,
            check.meaning,
            f"{check.limit:g} {check.unit}".strip() if isinstance(check.limit, int | float) else check.limit,
            check.remedy,
        ]
        for check in CHECKS.values()
    ]
    assert [row for row in rows if row[0] in CHECKS] == table
