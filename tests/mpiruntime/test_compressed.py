"""Sums as a plan has them: which goes where, what is counted, and a thread that makes them meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ollampi.kernels.codec import num_bytes
from ollampi.mpiruntime.compressed import Compressed
from ollampi.mpiruntime.exchange_plan import BENEATH, Choice, Plan, always
from ollampi.mpiruntime.exchange_thread import ExchangeThread
from ollampi.mpiruntime.link import Link
from ollampi.mpiruntime.thread_world import ThreadCommunicator, run_threads

SIZES = (1, 2, 3, 4)


def linked(comm: ThreadCommunicator, plan: Plan, quiet: bool = False) -> Compressed:
    """Return a compressed world with links of its own; collective."""
    links = [comm.link(range(comm.size)) for _ in range(2)]
    assert links[0] is not None
    return Compressed(comm, links[0], plan, links[1] if quiet else None)


@pytest.mark.parametrize("size", SIZES)
def test_sums_are_those_of_the_plan(size: int) -> None:
    """Values that all codecs hold exactly: the way to the sum cannot be seen in it, only the bytes that passed."""
    plan = Plan((400, 4000), (Choice(BENEATH, 0), Choice("one_step", 2), Choice("scattered", 1)))

    def work(comm: ThreadCommunicator) -> None:
        sums = linked(comm, plan)
        for shape, wire in (((100,), 0), ((2, 50, 10), 2 * (size - 1) * num_bytes(2, 1000)), ((4, 32 * 64), None)):
            for dtype in (torch.float32, torch.bfloat16):
                before = sums.wire_bytes
                unit = 127.0 if shape == (2, 50, 10) else 1.0  # which the scales of 8 bits hold exactly
                x = torch.full(shape, unit * (1 + comm.rank)).to(dtype)
                total = sums.all_reduce(x)
                assert total.shape == x.shape
                assert total.dtype == torch.float32
                assert torch.equal(total, torch.full(shape, unit).to(dtype).float() * sum(range(size + 1)))
                shares = [len(range(256)[256 * r // size : 256 * (r + 1) // size]) * 64 for r in range(size)]
                own, others = shares[comm.rank], sum(shares) - shares[comm.rank]
                assert sums.wire_bytes - before == (wire if wire is not None else 2 * ((size - 1) * own + others))

    run_threads(size, work)


@pytest.mark.parametrize("size", SIZES)
def test_fp64_stays_exact(size: int) -> None:
    def work(comm: ThreadCommunicator) -> None:
        sums = linked(comm, always(Choice("one_step", 4)), quiet=True)
        x = torch.full((1000,), 1 + 2.0**-40 + comm.rank, dtype=torch.float64)
        for total in (sums.all_reduce(x), sums.all_reduce_later(x)()):
            assert total.dtype == torch.float64
            assert torch.equal(total, torch.full_like(x, size * (1 + 2.0**-40) + sum(range(size))))
        assert sums.wire_bytes == 0

    run_threads(size, work)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_gather_joins_uneven_parts_in_rank_order(size: int, rows: int) -> None:
    def work(comm: ThreadCommunicator) -> None:
        world = linked(comm, always(Choice("one_step", 4)))
        for turn in range(3):
            widths = [(r + turn) % 3 * 7 for r in range(size)]
            x = torch.randn(rows, widths[comm.rank], dtype=torch.bfloat16)
            joined, expected = world.gather(x), comm.gather(x)
            assert (joined is None) == (expected is None) == (comm.rank > 0)
            if joined is not None and expected is not None:
                assert torch.equal(joined, expected)

    run_threads(size, work)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 17])
@pytest.mark.parametrize("choice", [Choice(BENEATH, 0), Choice("scattered", 0), Choice("one_step", 2)])
def test_shared_rows_are_their_owners(size: int, dtype: torch.dtype, tokens: int, choice: Choice) -> None:
    """Values that codes hold exactly; each row goes to all others, in what has fewer bytes."""

    def work(comm: ThreadCommunicator) -> None:
        world = linked(comm, always(choice))
        owners = torch.randint(0, max(1, size - 1), (tokens,), generator=torch.Generator().manual_seed(3))
        rows = (127.0 * 2 ** (torch.arange(tokens)[:, None] % 7)).expand(tokens, 64).to(dtype)
        given = torch.where((owners == comm.rank)[:, None], rows, torch.inf)
        shared = world.share_rows(given, owners)
        assert shared.dtype == torch.float32
        assert torch.equal(shared, rows.float())
        own = int((owners == comm.rank).sum())
        row_bytes = num_bytes(2, 64) if choice.level else 64 * dtype.itemsize
        assert world.wire_bytes == ((size - 1) * own + tokens - own) * row_bytes

    run_threads(size, work)


@pytest.mark.parametrize("size", SIZES)
def test_rows_in_codes_are_the_same_bits_everywhere_and_plain_where_codes_have_no_fewer_bytes(size: int) -> None:
    def work(comm: ThreadCommunicator) -> list[bytes]:
        rows = torch.randn(9, 96, generator=torch.Generator().manual_seed(7)).bfloat16()
        owners = torch.arange(9) % size
        found = []
        for level in (1, 2, 4):
            shared = linked(comm, always(Choice("one_step", level))).share_rows(rows, owners)
            assert torch.equal(shared, rows.float()) == (level == 1)
            assert (shared - rows.float()).abs().max() <= rows.abs().max().item() / (1 << (2 if level == 4 else 6))
            found.append(shared.numpy().tobytes())
        return found

    found = run_threads(size, work)
    assert found == [found[0]] * size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("choice", [Choice("scattered", 2), Choice("one_step", 0), Choice(BENEATH, 0)])
def test_later_sums_are_those_of_now_in_the_order_of_their_start(size: int, choice: Choice) -> None:
    def work(comm: ThreadCommunicator) -> None:
        sums = linked(comm, always(choice), quiet=True)
        generator = torch.Generator().manual_seed(comm.rank)
        given = [torch.randn(3, 500, generator=generator) for _ in range(5)]
        with torch.inference_mode():
            waits = [sums.all_reduce_later(x) for x in given[:3]]
            found = [sums.all_reduce(given[3])]  # beside them
            waits.append(sums.all_reduce_later(given[4]))
            before = sums.wire_bytes
            found += [wait() for wait in waits]
        assert (sums.wire_bytes > before) == (size > 1)
        for total, x in zip(found, [given[3], *given[:3], given[4]], strict=True):
            assert torch.allclose(total, sums.all_reduce(x), atol=1e-5)

    run_threads(size, work)


def test_without_a_second_link_later_sums_are_made_at_once() -> None:
    def work(comm: ThreadCommunicator) -> None:
        sums = linked(comm, always(Choice("one_step", 0)))
        wait = sums.all_reduce_later(torch.ones(5))
        assert (sums.wire_bytes > 0) == (comm.size > 1)
        assert torch.equal(wait(), torch.full((5,), float(comm.size)))

    run_threads(2, work)


class _Broken:
    """A link over which nothing passes."""

    rank, size = 0, 2

    def swap(self, sends: object, receives: object, what: str) -> None:
        raise ConnectionError(f"no {what}")


def test_what_the_thread_raises_is_raised_where_the_sum_is_asked_for() -> None:
    def work(comm: ThreadCommunicator) -> None:
        link: Link | None = comm.link(range(comm.size))
        assert link is not None
        sums = Compressed(comm, link, always(Choice("one_step", 2)), _Broken())
        waits = [sums.all_reduce_later(torch.ones(3)) for _ in range(2)]
        for wait in waits:
            with pytest.raises(ConnectionError, match=r"^no all_reduce$"):
                wait()

    run_threads(2, work)


def test_the_thread_computes_alone_and_in_the_mode_of_who_asked() -> None:
    thread = ExchangeThread()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert thread.start(torch.get_num_threads)() in (1, 2)  # 2 without the native library
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with torch.inference_mode():
        asked: Callable[[], bool] = thread.start(torch.is_inference_mode_enabled)
    assert asked()
    assert not thread.start(torch.is_inference_mode_enabled)()


def test_the_thread_keeps_no_tensor_of_a_sum_that_was_taken() -> None:
    import weakref

    thread = ExchangeThread()
    x: Tensor | None = torch.ones(5)
    assert x is not None
    seen = weakref.ref(x)
    wait = thread.start(lambda x=x: x + 1)  # type: ignore[misc]
    assert wait() is not None
    del wait, x
    thread.start(threading.get_ident)()
    assert seen() is None
