"""A sweep whose points are jobs of a real Slurm: all are measured, the best shard counts are told, none is left."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

from support.servers import wait_until
from support.slurm_jobs import ROOT
from support.slurmlab import Slurm, has_pmix
from sweep_advice import LATENCY, MEMORY, THROUGHPUT, choices
from sweep_points import Load
from sweep_records import Records, of_sweep

WORDS = ["slurm=true", "shards=1,2,3", "concurrency=1,2", "prompt=16", "output=8", "threads=1", "model=demo"]
WORDS += ["slurm_options=[--exclusive,--ntasks-per-node=2]"]  # servers of three ranks are on two nodes
WORDS += ["starts=1", "warmups=0", "repeats=2", "ready_s=250", "slurm_wait_s=280"]


def swept(slurm: Slurm, folder: Path) -> tuple[str, str]:
    """Return what a sweep that could measure all its points printed: the report, and how it went on."""
    line = [sys.executable, str(ROOT / "benchmarks" / "sweep.py"), *WORDS, f"folder={folder}"]
    environ = {**slurm.environ, "PYTHONPATH": str(ROOT / "src"), "OMPI_MCA_mpi_yield_when_idle": "1"}
    done = subprocess.run(line, env=environ, cwd=folder, capture_output=True, text=True, timeout=290)
    logs = "\n".join(path.read_text() for path in folder.glob("sweep-*.log"))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{logs}"
    return done.stdout, done.stderr


def test_each_point_is_a_job_and_the_best_shard_counts_are_told(slurm: Slurm, tmp_path: Path) -> None:
    told, went = swept(slurm, tmp_path)
    assert "6 jobs submitted, 0 are in the queue already" in went
    records = list(Records(tmp_path).read().values())
    assert [record.error for record in records] == [""] * 6
    assert sorted((record.point.server.shards, record.point.load.concurrency) for record in records) == [
        (shards, concurrency) for shards in (1, 2, 3) for concurrency in (1, 2)
    ]
    for record in records:
        assert record.point.load == Load(record.point.load.concurrency, 16, 8)
        assert record.groups == [list(range(record.point.server.shards))]
        tasks = {1: r"n\d \(1\)", 2: r"n\d \(2\)", 3: r"n\d \(2\), n\d \(1\)"}[record.point.server.shards]
        ways = "(srun --mpi=pmix|mpirun)" if has_pmix() else "mpirun"
        log = (tmp_path / f"sweep-{record.key}.log").read_text()
        assert re.search(f"starting ranks on {tasks} with {ways}\n", log), log
        assert [repeat.tokens for repeat in record.repeats] == [8 * record.point.load.concurrency] * 2
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [(row["shards"], row["concurrency"], row["error"]) for row in rows] == [
        (shards, concurrency, "") for shards in "123" for concurrency in "12"
    ]
    assert (tmp_path / "sweep.bench.txt").read_text().count("BenchmarkSweep/") == 12
    assert_it_ends_with_the_best(told, tmp_path, [row["key"] for row in rows])
    wait_until(lambda: slurm.run("squeue", "--noheader") == "", 60, "the last job, whose record is there, to end")
    before = (tmp_path / "sweep.csv").read_text()
    again, went = swept(slurm, tmp_path)
    assert "0 jobs submitted, 0 are in the queue already" in went
    assert (again, (tmp_path / "sweep.csv").read_text()) == (told, before)
    jobs = slurm.run("scontrol", "-o", "show", "jobs").splitlines()
    assert sum("JobName=sweep-" in job for job in jobs) == 6


def assert_it_ends_with_the_best(told: str, folder: Path, keys: list[str]) -> None:
    """Assert that the last line names for each goal the shard count that follows from the records."""
    records = of_sweep(Records(folder).read(), keys)
    found = choices(records)["auto"]
    assert list(found) == [LATENCY, THROUGHPUT, MEMORY]
    counts = [f"{each.shards} shard{'s' * (each.shards > 1)} for {goal}" for goal, each in found.items()]
    assert counts[2] == "3 shards for memory"  # the more shards, the less each holds
    last = told.splitlines()[-1]
    assert last.startswith(f"Best with quantize=auto: {', '.join(counts)}. ")
    assert (folder / "sweep.md").read_text().endswith(f"{last}\n")
