"""What a rank does beside its steps: in turn, at rest during steps, given up by key; memory that it gives back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from support.worlds import lead

from ollampi.kernels import pages
from ollampi.mpiruntime.background import Background, GivenUp
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.thread_world import run_threads

LONG_S = 60.0  # for what happens at once


def test_jobs_are_done_in_turn_rest_during_steps_and_are_given_up_by_key() -> None:
    background, log = Background(), list[str]()
    rested = threading.Event()

    def job(name: str) -> Callable[[], str]:
        def work() -> str:
            rested.set()
            background.pause()
            log.append(name)
            return name

        return work

    with background.resting():
        background.put(job("a"), lambda name: log.append(f"{name} seen"))
        background.put(job("b"), key=1)
        assert rested.wait(LONG_S)
        background.look()
        assert log == []
        background.give_up(1)
    background.close()
    assert log == ["a"]
    with pytest.raises(GivenUp):
        background.look()
    assert log == ["a", "a seen"]
    assert not background.busy


def test_a_defect_in_a_job_is_one_of_the_rank() -> None:
    def work(runner: Runner) -> None:
        runner.background.put(lambda: 1 // 0)
        while runner.background.busy:
            runner.background.look()

    with pytest.raises(ZeroDivisionError):
        run_threads(1, lambda comm: lead(comm, work))


@pytest.mark.parametrize("count", [10, 5 << 20])
def test_memory_that_is_dropped_reads_as_zeros_and_what_lies_beside_it_stays(count: int) -> None:
    whole = pages.empty((count + 2 * pages.PAGE,), torch.uint8)
    whole.fill_(7)
    part = whole[pages.PAGE + 1 : pages.PAGE + 1 + count]
    pages.drop(part)
    assert whole[: pages.PAGE + 1].eq(7).all()
    assert whole[pages.PAGE + 1 + count :].eq(7).all()
    assert int(part.eq(7).sum()) < 2 * pages.PAGE if count > 2 * pages.PAGE else part.eq(7).all()
