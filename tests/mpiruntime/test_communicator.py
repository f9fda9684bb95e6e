"""What communicators do by their sums, in worlds of threads and of one; tests/mpi asserts the same of MPI."""

from __future__ import annotations

import pytest
import torch
from support.exchanges import assert_shared_rows, assert_sums_under_way

from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.metrics import StepCounts
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.timed import Timed


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_sums_may_be_under_way_and_rows_are_their_owners(size: int) -> None:
    def work(comm: Communicator) -> StepCounts:
        counts = StepCounts()
        for each in (comm, Timed(comm, counts)):
            assert_sums_under_way(each)
            assert_shared_rows(each)
        return counts

    for counts in run_threads(size, work):
        rows = sum(tokens * 5 * item for tokens in (1, 3, 11) for item in (4, 2))
        assert (counts.all_reduce.calls, counts.all_reduce.size_bytes) == (2 + 6, 2 * 12 * 4 + rows)


def test_a_world_of_one_does_likewise() -> None:
    assert_sums_under_way(Single())
    assert_shared_rows(Single())


class Slow(Single):
    """A world of one whose clock stands still but for 3 s to start a sum and 5 s to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def all_reduce_later(self, x: torch.Tensor):  # type: ignore[no-untyped-def]
        """Return what waits for x [...]."""
        self.now += 3

        def wait() -> torch.Tensor:
            self.now += 5
            return x

        return wait


def test_the_time_between_start_and_wait_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, counts = Slow(), StepCounts()
    monkeypatch.setattr("ollampi.mpiruntime.timed.perf_counter", lambda: slow.now)
    wait = Timed(slow, counts).all_reduce_later(torch.ones(2))
    slow.now += 100
    wait()
    assert (counts.all_reduce.calls, counts.all_reduce.seconds, counts.all_reduce.size_bytes) == (1, 8.0, 8)
