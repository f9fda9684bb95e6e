"""Free memory is what the host has, within the limits of all cgroups above the process."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from ollampi.mpiruntime.world import free_memory, own_memory


def write_group(folder: Path, version: int, limit: str, used: int, cached: int) -> None:
    """Write the memory files of a cgroup."""
    folder.mkdir(parents=True, exist_ok=True)
    limit_name, used_name, prefix = [
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ("memory.max", "memory.current", ""),
    ][version - 1]
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / used_name).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\n{prefix}active_file {cached // 2}\n{prefix}inactive_file {cached // 2}\n"
    )


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return a folder with a host of 1,024,000 free bytes and a process in the group /job/step."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 7 kB\nMemAvailable:  1000 kB\n")
    (tmp_path / "membership").write_text("9:cpu,memory:/job/step\n4:cpuset:/other\n0::/job/step\n")
    (tmp_path / "groups").mkdir()
    return tmp_path


def free(machine: Path) -> int:
    return free_memory(machine / "meminfo", machine / "groups", machine / "membership")


@pytest.mark.parametrize(
    ("folder", "version"),
    [("", 2), ("job", 2), ("job/step", 2), ("memory", 1), ("memory/job", 1), ("memory/job/step", 1)],
)
def test_the_limit_of_any_group_above_the_process_counts(machine: Path, folder: str, version: int) -> None:
    assert free(machine) == 1_024_000
    for limit, used, cached, left in [
        ("800000", 300000, 0, 500000),
        ("800000", 700000, 600000, 700000),  # files that are cached give way
        ("800000", 900000, 0, 0),
        ("9223372036854771712" if version == 1 else "max", 300000, 0, 1_024_000),
        ("8000000", 300000, 0, 1_024_000),
    ]:
        write_group(machine / "groups" / folder, version, limit, used, cached)
        assert free(machine) == left


def test_groups_of_others_and_a_host_without_groups_limit_nothing(machine: Path) -> None:
    write_group(machine / "groups" / "another", 2, "10", 5, 0)
    write_group(machine / "groups" / "memory/other", 1, "10", 5, 0)
    assert free(machine) == 1_024_000
    (machine / "membership").unlink()
    assert free(machine) == 1_024_000


def test_the_smallest_of_several_limits_counts(machine: Path) -> None:
    for folder, limit in (("", "900000"), ("job", "500000"), ("job/step", "700000")):
        write_group(machine / "groups" / folder, 2, limit, 100000, 0)
    assert free(machine) == 400000


@pytest.mark.parametrize(
    ("data", "size", "left"),
    [
        (None, None, None),
        (500_000, None, 90_400),
        (None, 1_000_000, 180_800),
        (500_000, 1_000_000, 90_400),
        (5, None, 0),
    ],
)
def test_the_limits_of_the_process_count_what_it_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: int | None, size: int | None, left: int | None
) -> None:
    limits = {resource.RLIMIT_DATA: data, resource.RLIMIT_AS: size}
    unlimited = resource.RLIM_INFINITY
    soft = {kind: unlimited if limit is None else limit for kind, limit in limits.items()}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft[kind], unlimited))
    (tmp_path / "status").write_text("Name:\tx\nVmSize:\t     800 kB\nVmData:\t     400 kB\n")
    assert own_memory(tmp_path / "status") == left
