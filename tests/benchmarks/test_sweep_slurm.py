"""A sweep whose points are jobs of Slurm: what is submitted, waited for, refused; the tools of Slurm are made up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sweep_points import Sweep
from sweep_points import read as read_words
from sweep_records import Record, Records, Repeat
from sweep_server import Subject
from sweep_slurm import SCRIPT, sbatch_line, submit

from ollampi.mpiruntime.errors import ConfigError

MODEL = cast(Subject, SimpleNamespace(model=SimpleNamespace(name=SimpleNamespace(short="fake"), digest="d" * 64)))
DIGEST = MODEL.model.digest
ONE = Repeat(1.0, [0.1], [0.1], 10, [1.0], [1.0], 0.1)


def read(words: list[str]) -> Sweep:
    """Return a sweep whose servers are started once."""
    return read_words(["starts=1", *words])


@dataclass
class Slurm:
    """Tools of Slurm: refuses: from which job on; queue: of jobs before; does: what a job does when it is submitted."""

    refuses: int = 1000
    queue: list[str] = field(default_factory=list)
    does: Any = None
    lines: list[list[str]] = field(default_factory=list)

    def __call__(self, line: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.lines.append(list(line))
        jobs = [line for line in self.lines if line[0] == "sbatch"]
        if line[0] == "squeue":
            return subprocess.CompletedProcess(line, 0, "".join(f"{job}\n" for job in self.queue), "")
        if line[0] == "sbatch" and len(jobs) > self.refuses:
            return subprocess.CompletedProcess(line, 1, "", "sbatch: error: invalid\npartition\n")
        if line[0] == "sbatch" and self.does:
            self.does(line)
        return subprocess.CompletedProcess(line, 0, f"{100 + len(jobs)};cluster\n", "")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep_slurm._POLL_S", 0.01)
    monkeypatch.setattr("sweep_slurm._LATE_S", 0.02)


def test_a_job_has_the_tasks_of_its_point_and_every_word_is_one_argument(tmp_path: Path) -> None:
    words = ["shards=2", "replicas=3", "threads=4", "model=/a b;touch x", "slurm=true"]
    asked = read_words([*words, "slurm_options=[--partition=a b,--time=5]"])
    line = sbatch_line(asked, asked.points[0], "0123", words, tmp_path / "100%")
    assert line[:6] == [
        "sbatch",
        "--parsable",
        "--job-name=sweep-0123",
        "--ntasks=6",
        "--cpus-per-task=4",
        f"--output={tmp_path}/100%%/sweep-0123.log",
    ]
    assert line[6:10] == ["--partition=a b", "--time=5", str(SCRIPT), sys.executable]
    assert "model=/a b;touch x" in line
    again = read_words(line[line.index(sys.executable) + 2 :])  # what the job reads
    assert again.points == asked.points
    assert (again.options["slurm"], again.options["only"]) == (False, ["0123"])
    assert again.options["folder"] == str(tmp_path / "100%")


def test_the_script_runs_its_arguments_and_ends_as_they_do(tmp_path: Path) -> None:
    program = "import sys; print(sys.argv[1:]); sys.exit(7)"
    done = subprocess.run(
        ["bash", SCRIPT, sys.executable, "-c", program, "a b", "$(touch x)"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (7, "['a b', '$(touch x)']\n"), done.stderr


def test_jobs_are_waited_for_until_each_point_has_a_record(tmp_path: Path, quick: None) -> None:
    asked = read(["shards=1,2,4", "slurm=true"])
    keys = [asked.key(point, DIGEST) for point in asked.points]

    def does(line: Sequence[str]) -> None:
        key = next(word for word in line if word.startswith("only=")).removeprefix("only=[").rstrip("]")
        point = asked.points[keys.index(key)]
        if key == keys[2]:  # dies
            (tmp_path / f"sweep-{key}.log").write_text("loading\nslurmstepd: error: out of memory\n\n")
        else:
            Records(tmp_path, key).add(Record(key, "fake", DIGEST, point, [ONE]))

    slurm, said = Slurm(does=does), list[str]()
    submit(asked, asked.points, ["shards=1,2,4"], Records(tmp_path), MODEL, said.append, slurm)
    known = Records(tmp_path).read()
    assert [bool(known[key].repeats) for key in keys] == [True, True, False]
    assert known[keys[2]].error.startswith("the job ended without a record: slurmstepd: error: out of memory; see ")
    assert said[0] == "3 jobs submitted, 0 are in the queue already"
    assert len(said) == 3


def test_a_point_whose_job_is_in_the_queue_is_not_submitted_again(tmp_path: Path) -> None:
    asked = read(["shards=1,2", "slurm=true", "slurm_wait_s=0"])
    slurm = Slurm(queue=[f"7 sweep-{asked.key(asked.points[0], DIGEST)}", "8 sweep-of-another", "9 else"])
    submit(asked, asked.points, [], Records(tmp_path), MODEL, [].append, slurm)
    submitted = [line for line in slurm.lines if line[0] == "sbatch"]
    assert [line[2] for line in submitted] == [f"--job-name=sweep-{asked.key(asked.points[1], DIGEST)}"]


def test_where_slurm_refuses_a_job_none_of_the_sweep_is_left(tmp_path: Path) -> None:
    asked, slurm = read(["shards=1,2,4", "slurm=true"]), Slurm(refuses=2)
    with pytest.raises(
        ConfigError, match=r"sbatch refused shards=4 .*: sbatch: error: invalid partition; no job is left"
    ):
        submit(asked, asked.points, [], Records(tmp_path), MODEL, [].append, slurm)
    assert slurm.lines[-1] == ["scancel", "101", "102"]


def test_without_slurm_there_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = read(["slurm=true"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no squeue here; run the sweep without slurm=true"):
        submit(asked, asked.points, [], Records(tmp_path), MODEL, [].append)
