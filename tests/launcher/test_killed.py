"""What is killed leaves nothing after two seconds; `make test` gives these tests the machine for themselves."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.leftovers import assert_nothing_is_left, launched, open_stream, shared_memory
from support.servers import endless_model, server


@pytest.mark.parametrize("busy", [False, True])
def test_killing_mpirun_leaves_nothing_after_two_seconds(tmp_path: Path, busy: bool) -> None:
    before = shared_memory()
    model = f"model={endless_model(tmp_path)}"
    with server(4, tmp_path, model) as job, open_stream(job) if busy else nullcontext():
        pids = job.processes()
        job.process.kill()
        assert_nothing_is_left(job, pids, before, within_s=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_launch_ends_with_status_0_where_it_is_told_to_end(tmp_path: Path, number: int) -> None:
    before = shared_memory()
    with launched(tmp_path, "launch -n 2") as job:
        pids = job.processes()
        job.signal(number)
        assert job.process.wait(10) == 0, job.log.read_text()
        assert_nothing_is_left(job, pids, before, within_s=2)


@pytest.mark.parametrize("line", ["launch -n 4", "launch -n 4 --restarts 3"])
def test_killing_launch_leaves_nothing_after_two_seconds(tmp_path: Path, line: str) -> None:
    before = shared_memory()
    with launched(tmp_path, line) as job:
        pids = job.processes()
        job.process.kill()
        assert_nothing_is_left(job, pids, before, within_s=2)
