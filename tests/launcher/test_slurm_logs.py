"""Logs of Slurm jobs: where they are, and what comes while one looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_slurm import FakeSlurm, an_endpoint

from ollampi.launcher.slurm_client import SlurmError
from ollampi.launcher.slurm_logs import expanded, follow, last_line, log_file, whole
from ollampi.mpiruntime.errors import ConfigError

GONE = {"err": "slurm_load_jobs error: Invalid job id specified\n", "status": 1}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(fake.programs))
    monkeypatch.chdir(fake.cwd)
    return fake


def told(slurm: FakeSlurm, output: str, job: str = "JobId=100 JobName=x") -> None:
    text = f"{job}\n   UserId=me(1000)\n   StdOut={output}\n   WorkDir=/w d\n   BatchHost=n1\n"
    slurm.answer(scontrol={"out": text})


def test_the_output_is_where_slurm_says(slurm: FakeSlurm) -> None:
    told(slurm, "/shared/my logs/x-100.log")
    assert log_file("100", None, None) == Path("/shared/my logs/x-100.log")
    told(slurm, "x-%j.log")
    assert log_file("100", None, None) == Path("/w d/x-100.log")
    told(slurm, "/l/%A_%3a-%x-%u-%%-%N-%q", "JobId=101 ArrayJobId=100 ArrayTaskId=7 JobName=a b")
    assert log_file("100_7", None, None) == Path("/l/100_007-a b-me-%-n1-%q")
    assert slurm.words("scontrol")[-1] == ["scontrol", "show", "job", "100_7"]
    with pytest.raises(ConfigError, match="job 100 has replicas; name one, such as 100_0"):
        log_file("100", None, None)


def test_values_are_not_expanded_again() -> None:
    assert expanded("%x-%j", {"JobName": "%j%%", "JobId": "5"}) == "%j%%-5"
    assert expanded("%99999j", {"JobId": "5"}) == "5".rjust(99, "0")


def test_a_job_that_slurm_forgot_is_looked_for_here(slurm: FakeSlurm) -> None:
    slurm.answer(scontrol=GONE)
    with pytest.raises(SlurmError, match="Invalid job id"):
        log_file("100", None, None)
    slurm.answer(scontrol={"status": 1})  # all that Slurm tells of a task that its array does not have
    with pytest.raises(SlurmError, match="Slurm knows no job 100_9; `ollampi slurm status` lists yours"):
        log_file("100_9", None, None)
    (slurm.cwd / "ollampi-100.log").touch()
    assert log_file("100", None, None) == Path("ollampi-100.log")
    told(slurm, "(null)")
    with pytest.raises(SlurmError, match=r"does not say where job 100 writes to; look for ollampi-100.log"):
        log_file("100", None, None)


def test_the_logs_of_ranks(slurm: FakeSlurm) -> None:
    one = an_endpoint(logs="/shared/logs", ranks=4)
    assert log_file("100", 0, one) == Path("/shared/logs/cluster_coordinator.log")
    assert log_file("100", 3, one) == Path("/shared/logs/cluster_worker-3.log")
    assert slurm.calls() == []
    told(slurm, "/somewhere/x.log")
    assert log_file("100", 1, None) == Path("/w d/ollampi-100.logs/cluster_worker-1.log")
    slurm.answer(scontrol=GONE)
    assert log_file("100_2", 1, None) == Path("ollampi-100_2.logs/cluster_worker-1.log")
    with pytest.raises(ConfigError, match="--rank is 4; the ranks of job 100 are 0 to 3"):
        log_file("100", 4, one)
    with pytest.raises(ConfigError, match="--rank is -1; the ranks of job 100 are 0 or more"):
        log_file("100", -1, None)


def test_what_comes_is_followed_until_the_job_is_over(tmp_path: Path) -> None:
    path, now, steps = tmp_path / "log", [0.0], [0]
    parts: list[Callable[[], object]] = [
        lambda: None,  # the job waits
        lambda: path.write_bytes("first é".encode()[:-1]),
        lambda: path.write_bytes("first é\n".encode()),
        lambda: append(path, b"second\n"),
        lambda: path.write_bytes(b"anew\n"),  # requeued, into a file that was cut
    ]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if int(now[0]) > steps[0] and steps[0] < len(parts):
            parts[steps[0]]()
            steps[0] += 1

    def goes_on() -> bool:
        if now[0] < 20:
            return True
        append(path, b"last\n")  # between the last look and the end
        return False

    assert "".join(follow(path, goes_on, sleep, lambda: now[0])) == "first é\nsecond\nanew\nlast\n"


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_a_whole_file_and_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = "é" * 100_000 + "\r\nlast \n\n \n"
    path.write_bytes(text.encode())
    assert "".join(whole(path)) == text
    assert last_line(path) == "last"
    assert last_line(tmp_path / "none") == ""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        list(whole(tmp_path / "none"))
