"""Sums and joins through shared memory, between the threads of one process."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ollampi.kernels import native
from ollampi.mpiruntime import shared_memory
from ollampi.mpiruntime.communicator import Communicator, summable
from ollampi.mpiruntime.errors import LostRank, WorldError
from ollampi.mpiruntime.shared_memory import Layout, Peers, SharedMemory, share_memory
from ollampi.mpiruntime.thread_world import run_threads

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels were not built")
SIZES = (1, 2, 3, 4, 5)


def run_shared(size: int, work: Callable[[SharedMemory], object]) -> list[object]:
    """Return what `work` returns on each of `size` ranks, which share memory; they outnumber the cores."""
    memory = mmap.mmap(-1, Layout(size).size_bytes)
    return run_threads(size, lambda comm: work(SharedMemory(comm, memory, crowded=True, peers=Peers({}))))


def in_rank_order(parts: list[Tensor]) -> Tensor:
    """Return the sum of the parts [...], the first two added first."""
    total = summable(parts[0]).clone()
    for part in parts[1:]:
        total += summable(part)
    return total


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bytes(a.numpy().tobytes()) == bytes(b.numpy().tobytes())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_are_added_in_rank_order_bit_for_bit_on_every_rank(size: int, dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(size)
    slot = Layout(size).slot_bytes // summable(torch.zeros(1, dtype=dtype)).itemsize
    shapes = [(0,), (0, 5), (1,), (3, 7), (15,), (16,), (17,), (2048,), (4096,), (20001,), (5, slot - 1), (2 * slot,)]
    given = [[torch.randn(shape, generator=chance).to(dtype) * 10**r for r in range(size)] for shape in shapes]

    def work(comm: SharedMemory) -> bool:
        return all(
            same_bits(comm.all_reduce(parts[comm.rank]), in_rank_order(parts)) for parts in given for _ in range(3)
        )

    assert run_shared(size, work) == [True] * size


def test_special_values_are_added_as_always() -> None:
    parts = [
        torch.tensor([-0.0, float("inf"), float("inf"), 1e-45, float("nan")]),
        torch.tensor([-0.0, 1.0, float("-inf"), 1e-45, 1.0]),
        torch.tensor([-0.0, 1.0, 1.0, -1e-45, 1.0]),
    ]
    expected = in_rank_order(parts)
    for total in run_shared(3, lambda comm: comm.all_reduce(parts[comm.rank])):
        assert isinstance(total, Tensor)
        assert torch.equal(total.isnan(), expected.isnan())
        assert same_bits(total[[0, 1, 3]], expected[[0, 1, 3]])


def test_the_input_may_be_spread_in_memory_and_is_left_alone() -> None:
    def work(comm: SharedMemory) -> None:
        x = torch.arange(24.0).view(4, 6).t()[::2] + comm.rank
        before = x.clone()
        assert torch.equal(comm.all_reduce(x), 3 * before + 3 - 3 * comm.rank)
        assert torch.equal(x, before)

    run_shared(3, work)


@pytest.mark.parametrize("size", SIZES)
def test_thousands_of_calls_of_random_kinds_and_lengths(size: int) -> None:
    def work(comm: SharedMemory) -> None:
        chance = random.Random(7)  # the same calls on every rank
        for turn in range(2000):
            length = chance.choice([0, 1, 3, 100, 2048, 5000, 70000 if turn % 50 == 0 else 17])
            if chance.random() < 0.3:
                joined = comm.gather(torch.full((3, length % 97 + comm.rank), float(comm.rank + turn)))
                if joined is not None:
                    expected = [float(r + turn) for r in range(size) for _ in range(length % 97 + r)]
                    assert joined.tolist() == [expected] * 3
            else:
                total = comm.all_reduce(torch.full((length,), float(comm.rank + turn)))
                assert torch.equal(total, torch.full((length,), float(size * turn + sum(range(size)))))

    run_shared(size, work)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("rows", "width"), [(0, 4), (1, 0), (1, 1), (1, 5000), (7, 33), (5, 40000), (128, 2048)])
def test_gather_joins_uneven_parts_on_rank_0(size: int, rows: int, width: int) -> None:
    chance = torch.Generator().manual_seed(rows + width)
    parts = [torch.randn(rows, width + 3 * r, generator=chance) for r in range(size)]
    found = run_shared(size, lambda comm: comm.gather(parts[comm.rank]))
    assert isinstance(found[0], Tensor)
    assert same_bits(found[0], torch.cat(parts, dim=-1))
    assert found[1:] == [None] * (size - 1)


@pytest.mark.parametrize("size", SIZES)
def test_what_rank_0_has_is_shared_bit_for_bit(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patience of zero gives up in every call, in the middle of pieces too."""
    monkeypatch.setattr(shared_memory, "_PATIENCE_NS", 0)
    lengths = [0, 1, 2048, Layout(size).slot_bytes, 3 * Layout(size).slot_bytes + 5]
    given = torch.arange(max(lengths)).to(torch.uint8)

    def work(comm: SharedMemory) -> None:
        for length in lengths * 3:
            x = given[:length].clone() if comm.rank == 0 else torch.full((length,), 255, dtype=torch.uint8)
            comm.share(x)
            assert torch.equal(x, given[:length])
            assert torch.equal(comm.all_reduce(torch.ones(5)), torch.full((5,), float(size)))

    run_shared(size, work)


def test_gather_of_parts_that_are_empty_but_for_one() -> None:
    found = run_shared(3, lambda comm: comm.gather(torch.ones(200, 500 if comm.rank == 1 else 0)))
    assert isinstance(found[0], Tensor)
    assert same_bits(found[0], torch.ones(200, 500))


def test_gather_takes_bf16_and_gives_fp32() -> None:
    found = run_shared(2, lambda comm: comm.gather(torch.ones(1, 2, dtype=torch.bfloat16)))
    assert isinstance(found[0], Tensor)
    assert same_bits(found[0], torch.ones(1, 4))


def test_a_call_returns_to_python_while_it_waits_and_then_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patience of zero gives up in every call, in the middle of pieces too."""
    monkeypatch.setattr(shared_memory, "_PATIENCE_NS", 0)
    parts = [torch.randn(300_000) for _ in range(4)]
    checks = [0] * 4

    def work(comm: SharedMemory) -> bool:
        class Counting(Peers):
            def check(self) -> None:
                checks[comm.rank] += 1

        comm._peers = Counting({})
        if comm.rank == 3:
            time.sleep(0.05)  # so that the others have to wait
        equal = same_bits(comm.all_reduce(parts[comm.rank]), in_rank_order(parts))
        joined = comm.gather(parts[comm.rank].view(3, -1))
        return equal and (joined is None or same_bits(joined, torch.cat([p.view(3, -1) for p in parts], dim=-1)))

    assert run_shared(4, work) == [True] * 4
    assert all(checks[:3])


def test_a_rank_that_ended_is_noticed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_GRACE_S", 0.05)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        memory = mmap.mmap(-1, Layout(2).size_bytes)
        peers = Peers({1: child.pid})
        peers.check()
        child.kill()

        def work(comm: Communicator) -> None:
            if comm.rank == 0:
                SharedMemory(comm, memory, crowded=True, peers=peers).all_reduce(torch.ones(3))

        with pytest.raises(LostRank, match="rank 1 has ended"):
            run_threads(2, work)


def test_the_segment_has_no_name_once_all_have_it_and_only_this_user_can_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    mapped = shared_memory._map

    def look(path: Path, rank: int, size: int) -> mmap.mmap:
        modes.append(path.stat().st_mode & 0o777)
        return mapped(path, rank, size)

    monkeypatch.setattr(shared_memory, "_map", look)
    found = run_threads(3, lambda comm: share_memory(comm, True, tmp_path).all_reduce(torch.ones(4)))
    assert all(torch.equal(total, torch.full((4,), 3.0)) for total in found)
    assert modes == [0o600] * 3
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_told_on_all_ranks_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(work: Callable[[Communicator], object]) -> str:
        told: list[str] = []

        def catch(comm: Communicator) -> None:
            with pytest.raises(WorldError) as caught:
                work(comm)
            told.append(str(caught.value))

        run_threads(3, catch)
        assert told == [told[0]] * 3
        assert list(tmp_path.iterdir()) == []
        return told[0]

    assert "No such file or directory" in refused(lambda comm: share_memory(comm, True, tmp_path / "none"))
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "library", lambda: None)
        assert refused(lambda comm: share_memory(comm, True, tmp_path)) == "the native kernels were not built"
    allocate = os.posix_fallocate

    def full(file: int, offset: int, length: int) -> None:
        if offset:  # rank 0 had room for its lines
            raise OSError(28, "No space left on device")
        allocate(file, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert refused(lambda comm: share_memory(comm, True, tmp_path)) == "rank 0: [Errno 28] No space left on device"


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 1024])
def test_the_parts_of_a_segment_lie_on_pages_and_do_not_overlap(size: int) -> None:
    layout = Layout(size)
    ends = [layout.slots(rank)[0] for rank in range(size)] + [layout.size_bytes]
    assert layout.slots_at >= 64 * size
    assert ends[0] == layout.slots_at
    assert all(b - a == 2 * layout.slot_bytes for a, b in pairwise(ends))
    assert all(end % mmap.PAGESIZE == 0 for end in ends)
    assert layout.size_bytes <= (16 << 20) + (1 << 20)


def test_the_state_of_a_room_has_the_size_that_the_library_says() -> None:
    library = native.library()
    assert library is not None
    assert library.ollampi_shared_room_bytes() == 11 * ctypes.sizeof(ctypes.c_int64)
