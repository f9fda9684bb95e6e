"""No thread is left of an exchange that is closed, or that nobody holds any more, whatever went through it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import PROMPT, write_checkpoint
from support.servers import wait_until
from support.worlds import lead, load_message, logits_in_pieces

from ollampi.mpiruntime.compressed import Compressed
from ollampi.mpiruntime.exchange_plan import Choice, always
from ollampi.mpiruntime.exchange_thread import ExchangeThread
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Unload
from ollampi.mpiruntime.thread_world import ThreadCommunicator, run_threads

ENDED_S = 20.0


def alive() -> set[threading.Thread]:
    """Return the threads of exchanges."""
    return {thread for thread in threading.enumerate() if thread.name == "exchange"}


@pytest.fixture
def ended() -> Callable[[], None]:
    """Return what asserts that the threads made in this test end."""
    before = alive()

    def check() -> None:
        gc.collect()
        wait_until(lambda: alive() <= before, ENDED_S, "the exchange's threads to end")

    return check


def quiet_world(comm: ThreadCommunicator) -> Compressed:
    """Return a world whose later sums are made by a thread; collective."""
    links = [comm.link(range(comm.size)) for _ in range(2)]
    assert links[0] is not None
    return Compressed(comm, links[0], always(Choice("one_step", 2)), links[1])


def test_closing_ends_the_thread_after_its_last_job() -> None:
    before, thread, began = alive(), ExchangeThread(), threading.Event()
    wait = thread.start(lambda: began.wait(ENDED_S))
    assert len(alive() - before) == 1
    began.set()
    thread.close()
    assert wait()
    assert alive() <= before
    thread.close()  # once more does nothing
    ExchangeThread().close()  # nor does it where there was no job
    assert alive() <= before


def test_a_thread_ends_where_nobody_holds_it_also_after_a_failure(ended: Callable[[], None]) -> None:
    thread = ExchangeThread()
    failing = thread.start(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing()
    del thread, failing
    ended()


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("closes", [True, False])
def test_worlds_leave_no_thread(size: int, closes: bool, ended: Callable[[], None]) -> None:
    def work(comm: ThreadCommunicator) -> None:
        world = quiet_world(comm)
        assert torch.equal(world.all_reduce_later(torch.full((32,), 127.0))(), torch.full((32,), 127.0 * size))
        if closes:
            world.close()

    run_threads(size, work)
    ended()


@pytest.mark.parametrize("size", [1, 3])
def test_models_that_are_loaded_and_unloaded_share_one_thread_for_each_rank(
    tmp_path: Path, size: int, ended: Callable[[], None]
) -> None:
    folder, before = write_checkpoint(tmp_path / "model"), alive()

    def work(runner: Runner) -> list[int]:
        counts = []
        for _ in range(3):
            runner.lead_load(load_message(folder))
            logits_in_pieces(runner, PROMPT, [len(PROMPT)])
            counts.append(len(alive() - before))
            runner.lead(Unload(0))
        return counts

    def on_rank(comm: ThreadCommunicator) -> list[int] | None:
        return lead(comm, work, sums=quiet_world(comm), overlap="always")

    assert (
        run_threads(size, on_rank)[0] == [size if size > 1 else 0] * 3
    )  # alone no step is cut, so nothing comes later
    ended()
