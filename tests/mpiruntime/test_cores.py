"""A rank's share of the cores follows its affinity mask, the quotas of its cgroups, and Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ollampi.mpiruntime import world
from ollampi.mpiruntime.cores import all_cores, cores_per_task, slices, usable_cores
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import RankFacts, apart, crowded, survey


def facts(*masks: str, usable: int = 8, hosts: tuple[str, ...] = ()) -> list[RankFacts]:
    """Return the facts of ranks with these cores, such as "0123"."""
    return [
        RankFacts(rank, hosts[rank] if hosts else "h", rank, len(masks), [int(c) for c in mask], usable, 1, 0)
        for rank, mask in enumerate(masks)
    ]


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "450000 100000"}, 4),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu.max": "400000 100000", "job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000"}, 8),
        ({"other/cpu.max": "100000 100000"}, 8),
    ],
)
def test_the_smallest_quota_of_any_group_above_the_process_counts(
    tmp_path: Path, files: dict[str, str], usable: int
) -> None:
    (tmp_path / "membership").write_text("9:cpu,cpuacct:/job/step\n0::/job/step\n")
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text + "\n")
    assert usable_cores({}, 8, tmp_path / "groups", tmp_path / "membership") == usable


@pytest.mark.parametrize(
    ("environ", "usable", "per_task"),
    [
        ({}, 8, 8),
        ({"SLURM_CPUS_PER_TASK": "2"}, 8, 2),
        ({"SLURM_CPUS_PER_TASK": "16"}, 8, 8),
        ({"SLURM_CPUS_PER_TASK": ""}, 8, 8),
        ({"SLURM_CPUS_PER_TASK": "x"}, 8, 8),
        ({"SLURM_CPUS_ON_NODE": "4"}, 4, 8),
        ({"SLURM_CPUS_ON_NODE": "0"}, 8, 8),
    ],
)
def test_slurm_says_what_the_job_got_on_this_host_and_each_task(
    tmp_path: Path, environ: dict[str, str], usable: int, per_task: int
) -> None:
    assert usable_cores(environ, 8, tmp_path, tmp_path / "none") == usable
    assert cores_per_task(environ, 8) == per_task


def test_ranks_share_what_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(world, "usable_cores", lambda _environ, cores: cores)
    for size, threads in ((1, 8), (2, 4), (3, 2), (8, 1), (9, 1)):
        assert [fact.threads for fact in run_threads(size, survey)[0]] == [threads] * size
    monkeypatch.setattr(world, "cores_per_task", lambda _environ, _cores: 3)
    assert [fact.threads for fact in run_threads(2, survey)[0]] == [3, 3]
    monkeypatch.setattr(world, "usable_cores", lambda _environ, _cores: 2)
    assert [fact.threads for fact in run_threads(2, survey)[0]] == [1, 1]


def test_a_rank_is_crowded_where_threads_outnumber_the_cores_that_it_shares() -> None:
    assert not crowded(facts("01", "01", usable=2), 0, 1)
    assert crowded(facts("01", "01", usable=2), 0, 2)
    assert crowded(facts("01", "01", "01", usable=2), 0, 1)
    assert crowded(facts("0123", "0123", usable=1), 0, 1)
    assert not crowded(facts("01", "23", usable=2), 1, 2)
    assert not crowded(facts("01", "01", hosts=("a", "b"), usable=2), 1, 2)


def test_ranks_that_share_cores_get_slices_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "slices", lambda cores, count: slices(cores, count, tmp_path))
    shared = facts("01234567", "01234567", "01234567", usable=8)
    assert [(fact.cores, fact.usable) for fact in apart(shared)] == [([0, 1], 2), ([2, 3, 4], 3), ([5, 6, 7], 3)]


@pytest.mark.parametrize(
    "others",
    [
        facts("01234567"),  # alone
        facts("01", "01", "01", usable=2),  # too few
        facts("0123", "2345", usable=4),  # bound by somebody, but not apart
        facts("0123", "0123", usable=2),  # a quota, or Slurm's share: others use these cores too
        facts("01", "23", usable=2),  # bound apart already
    ],
)
def test_ranks_are_left_where_they_are_otherwise(others: list[RankFacts]) -> None:
    assert apart(others) == others


def test_what_a_pinned_thread_starts_may_run_where_other_threads_may() -> None:
    own = os.sched_getaffinity(0)
    over = threading.Event()
    wide = threading.Thread(target=over.wait)
    wide.start()
    try:
        os.sched_setaffinity(0, {min(own)})
        with all_cores():
            command = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
            assert int(subprocess.check_output(command)) == len(own)
        assert os.sched_getaffinity(0) == {min(own)}
    finally:
        os.sched_setaffinity(0, own)
        over.set()
        wide.join()


def test_threads_of_one_physical_core_stay_together(tmp_path: Path) -> None:
    for cpu in range(8):  # as on many machines: cpu n and n + 4 are one core
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{cpu % 4 // 2}\n")
        (folder / "core_id").write_text(f"{cpu % 2}\n")
    assert slices(range(8), 4, tmp_path) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert slices(range(8), 2, tmp_path) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert slices([0, 1, 2], 2, tmp_path / "none") == [[0], [1, 2]]
    assert slices([0, 1], 3, tmp_path) is None


def test_cores_of_one_numa_node_stay_together(tmp_path: Path) -> None:
    for cpu in range(8):  # one package of two NUMA nodes, whose cores alternate, as some firmware numbers them
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text("0\n")
        (folder / "core_id").write_text(f"{cpu}\n")
        (tmp_path / f"cpu{cpu}" / f"node{cpu % 2}").mkdir()
    assert slices(range(8), 2, tmp_path) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert slices(range(8), 4, tmp_path) == [[0, 2], [4, 6], [1, 3], [5, 7]]
