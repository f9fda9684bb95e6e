"""Sums over links: the same bits on every rank, whatever the world, the length and the level."""

from __future__ import annotations

import pytest
import torch
from support.links import check_swaps
from torch import Tensor

from ollampi.kernels.codecs import codec_of
from ollampi.mpiruntime.algorithms import ALGORITHMS, Room
from ollampi.mpiruntime.thread_world import ThreadCommunicator, run_threads


@pytest.mark.parametrize("size", range(1, 6))
def test_links_of_a_thread_world(size: int) -> None:
    def work(comm: ThreadCommunicator) -> None:
        link = comm.link(range(comm.size))
        assert link is not None
        check_swaps(link)
        ranks = list(reversed(range(comm.size)))[:2]
        part = comm.link(ranks)
        assert (part is None) == (comm.rank not in ranks)
        if part is not None:
            assert part.rank == ranks.index(comm.rank)
            check_swaps(part)

    run_threads(size, work)


def test_a_thread_link_refuses_what_mpi_would_leave_hanging() -> None:
    def work(comm: ThreadCommunicator) -> None:
        link = comm.link([0, 1])
        assert link is not None
        sends = [(1, torch.zeros(3, dtype=torch.uint8))] if comm.rank == 0 else []
        receives = [(0, torch.zeros(4, dtype=torch.uint8))] if comm.rank == 1 else []
        link.swap(sends, receives, "gather")

    with pytest.raises(
        ValueError, match=r"in gather rank 1 is sent \(rank, bytes\) \[\(0, 3\)\] and wants \[\(0, 4\)\]"
    ):
        run_threads(2, work)


SIZES = (1, 2, 3, 4, 5, 7, 8)
LENGTHS = (0, 1, 31, 32, 33, 65, 257, 1000)


def vectors(size: int, count: int) -> list[Tensor]:
    """Return one vector [count] for each rank, of very different sizes."""
    generator = torch.Generator().manual_seed(size + count)
    return [torch.randn(count, generator=generator) * 10.0 ** (r % 3) for r in range(size)]


def totals(size: int, algorithm: str, level: int, given: list[list[Tensor]]) -> list[list[Tensor]]:
    """Return for each of several sums what every rank of a thread world found; given: the ranks' vectors of each."""

    def work(comm: ThreadCommunicator) -> list[Tensor]:
        link, room, codec = comm.link(range(size)), Room(), codec_of(level, torch.device("cpu"))
        assert link is not None
        return [ALGORITHMS[algorithm](link, codec, x[comm.rank], room) for x in given]

    return [list(found) for found in zip(*run_threads(size, work), strict=True)]


def in_rank_order(parts: list[Tensor]) -> Tensor:
    """Return torch's fp32 sum, one part after the other."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def bits(x: Tensor) -> Tensor:
    """Return the bits of fp32 numbers, NaN without its payload: which NaN a sum is, is not said."""
    return torch.where(x.isnan(), torch.nan, x).view(torch.int32)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_have_the_same_bits_and_the_input_stays(algorithm: str, size: int) -> None:
    for level in range(5):
        given = [
            vectors(size, count) for count in (*LENGTHS, *reversed(LENGTHS))
        ]  # sizes come again, larger ones first
        kept = [[x.clone() for x in one] for one in given]
        for found in totals(size, algorithm, level, given):
            for total in found:
                assert torch.equal(bits(total), bits(found[0]))
        assert all(
            torch.equal(x, y) for one, other in zip(given, kept, strict=True) for x, y in zip(one, other, strict=True)
        )


@pytest.mark.parametrize("algorithm", ["one_step", "scattered"])
@pytest.mark.parametrize("size", SIZES)
def test_level_0_is_the_sum_in_rank_order(algorithm: str, size: int) -> None:
    given = [vectors(size, count) for count in LENGTHS]
    for found, parts in zip(totals(size, algorithm, 0, given), given, strict=True):
        assert torch.equal(bits(found[0]), bits(in_rank_order(parts)))


@pytest.mark.parametrize("size", SIZES)
def test_doubling_adds_sums_of_neighbours(size: int) -> None:
    given = [vectors(size, count) for count in LENGTHS]
    for found, parts in zip(totals(size, "doubling", 0, given), given, strict=True):
        paired = 2 ** (size.bit_length() - 1)
        sums = [parts[r] + parts[r + paired] if r + paired < size else parts[r] for r in range(paired)]
        while len(sums) > 1:
            sums = [low + high for low, high in zip(sums[::2], sums[1::2], strict=True)]
        assert torch.equal(bits(found[0]), bits(sums[0]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_errors_are_within_those_of_the_codes(algorithm: str, level: int) -> None:
    """A code is at most half a step off its number, and a step of level 1 or 3 at most 2^-7 or 2^-3 of it.

    Level 2 has 127 steps to the largest number of a group, level 4 has 8 and on the other side only 7, where the
    largest may lose a whole one. Scales are rounded, by 1 % at most.
    """
    relative = {1: 2.0**-8, 2: 0.5 / 127, 3: 2.0**-4, 4: 1 / 8}[level] * 1.05
    for size in SIZES:
        parts = vectors(size, 1000)
        sizes = torch.nn.functional.pad(torch.stack(parts).abs(), (0, 24)).view(size, -1, 32).amax(-1)
        most = sizes.sum(0).repeat_interleave(32)[:1000] * 1.5  # of any number on its way, errors included
        (found,) = totals(size, algorithm, level, [parts])
        times = {"one_step": 1, "doubling": size.bit_length() + 1, "scattered": 2}[algorithm]
        exact = torch.stack(parts).double().sum(0)
        assert ((found[0] - exact).abs() <= times * relative * most).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_not_finite_and_negative_zeros_reach_all_ranks(algorithm: str, size: int) -> None:
    given = [torch.full((100,), -0.0) for _ in range(size)]
    given[-1][40] = torch.nan
    given[0][70] = torch.inf
    for level in range(5):
        (found,) = totals(size, algorithm, level, [given])
        group = range(32, 64), range(64, 96)
        for total in found:
            assert torch.equal(bits(total), bits(found[0]))
            assert total[40].isnan()
            assert not total[70].isfinite()
            touched = [*group[0], *group[1]] if level > 1 else [40, 70]
            assert torch.equal(total.isfinite(), torch.tensor([i not in touched for i in range(100)]))
            zeros = total[total.isfinite()]
            assert (zeros == 0).all()
            assert zeros.signbit().all() == (level < 2)


def test_a_room_gives_the_same_memory_again_and_grows() -> None:
    room = Room()
    first = room.parts(100, 0, 7)
    assert [len(part) for part in first] == [100, 0, 7]
    assert [part.data_ptr() % 64 for part in first if len(part)] == [0, 0]
    assert first[2].data_ptr() >= first[0].data_ptr() + 100
    assert room.parts(100, 0, 7)[0].data_ptr() == first[0].data_ptr()
    with torch.inference_mode():
        grown = room.parts(5000)[0]
    grown[:] = 1  # also where it was made for inference
    for size in range(1, 300):
        assert len(room.parts(size)[0]) == size
