"""Links between the ranks of a real MPI job."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from support.checkpoints import PROMPT, reference_logits, write_checkpoint
from support.links import check_swaps
from support.worlds import load_and_compute
from torch import Tensor

from ollampi.kernels.codec import Codec
from ollampi.kernels.codecs import codec_of
from ollampi.mpiruntime import mpi
from ollampi.mpiruntime.algorithms import ALGORITHMS, Room
from ollampi.mpiruntime.compressed import Compressed
from ollampi.mpiruntime.errors import LostRank
from ollampi.mpiruntime.exchange import choose_exchange
from ollampi.mpiruntime.exchange_plan import Choice, always
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.thread_world import ThreadCommunicator, run_threads
from ollampi.mpiruntime.world import survey

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("quiet", [False, True])
def test_bytes_reach_the_ranks_that_they_are_for(comm: Mpi, quiet: bool) -> None:
    link = comm.link(range(comm.size), 30.0, quiet=quiet)
    assert link is not None
    assert (link.rank, link.size) == (comm.rank, comm.size)
    check_swaps(link)


def test_a_link_may_have_some_of_the_ranks_in_any_order(comm: Mpi) -> None:
    ranks = list(reversed(range(comm.size)))[:2]
    link = comm.link(ranks, 30.0)
    assert (link is None) == (comm.rank not in ranks)
    if link is not None:
        assert (link.rank, link.size) == (ranks.index(comm.rank), len(ranks))
        check_swaps(link)


def test_who_does_not_come_is_named_by_its_rank_in_the_world(comm: Mpi) -> None:
    told: list[tuple[str, list[int]]] = []
    ranks = list(reversed(range(comm.size)))
    waiting = comm.size > 1 and comm.rank == 0

    def late(what: str, missing: list[int]) -> None:
        """Note the call; the second one lets the others send what is missing."""
        told.append((what, missing))
        if len(told) == 2:
            comm.collect(b"come")

    link = comm.link(ranks, 0.05, late)
    assert link is not None
    root = ranks.index(0)
    if waiting:
        link.swap([], [(r, torch.zeros(5, dtype=torch.uint8)) for r in range(comm.size) if r != root], "all_reduce")
    else:
        comm.collect(b"come")
        if comm.rank:
            link.swap([(root, torch.zeros(5, dtype=torch.uint8))], [], "all_reduce")
    assert told[:2] == ([("all_reduce", list(range(1, comm.size)))] * 2 if waiting else [])


def test_a_rank_that_is_lost_ends_the_swap(comm: Mpi) -> None:
    link = comm.link(range(comm.size), 0.05)
    assert link is not None
    parts = [(r, torch.zeros(5, dtype=torch.uint8)) for r in range(1, comm.size)]
    if comm.rank == 0 and comm.size > 1:
        names = "rank 1 does" if comm.size == 2 else f"ranks {', '.join(map(str, range(1, comm.size)))} do"
        with pytest.raises(LostRank, match=f"^{names} not come to gather$"):
            link.swap([], parts, "gather")
    comm.collect(b"")
    if comm.rank:
        link.swap([(0, torch.zeros(5, dtype=torch.uint8))], [], "gather")
    comm.collect(b"")


def test_links_leave_no_shared_memory_file(comm: Mpi) -> None:
    named = mpi._SEGMENT.findall(Path("/proc/self/maps").read_text())
    assert [name for name in named if os.path.exists(name)] == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sums_have_the_same_bits_on_all_ranks_and_those_of_the_thread_world(comm: Mpi, algorithm: str) -> None:
    """Every rank makes a thread world of the same size itself, and finds in it what it found through MPI."""
    link, room = comm.link(range(comm.size), 30.0), Room()
    assert link is not None
    for level in range(5):
        codec = codec_of(level, torch.device("cpu"))
        for count in (0, 1, 31, 33, 2048, 30_011):
            given = [torch.randn(count, generator=torch.Generator().manual_seed(r)) for r in range(comm.size)]
            total = ALGORITHMS[algorithm](link, codec, given[comm.rank], room)
            assert len(set(comm.collect(total.numpy().tobytes()))) == 1

            def work(thread: ThreadCommunicator, given: list[Tensor] = given, codec: Codec = codec) -> Tensor:
                world = thread.link(range(thread.size))
                assert world is not None
                return ALGORITHMS[algorithm](world, codec, given[thread.rank], Room())

            assert torch.equal(total, run_threads(comm.size, work)[0])


def test_sums_are_made_while_this_thread_computes_and_talks(comm: Mpi) -> None:
    links = [comm.link(range(comm.size), 30.0, quiet=quiet) for quiet in (False, True)]
    assert links[0] is not None
    sums = Compressed(comm, links[0], always(Choice("scattered", 0)), links[1])
    chance = torch.Generator().manual_seed(comm.rank)
    for count in (1, 5000, 300_001):
        given = [torch.randn(count, generator=chance) for _ in range(6)]
        waits = [sums.all_reduce_later(x) for x in given]
        beside = [comm.collect(b"x" * turn) for turn in range(5)]
        now = sums.all_reduce(given[0])
        joined = sums.gather(torch.full((2, comm.rank + 1), float(comm.rank)))
        totals = [wait() for wait in waits]
        assert beside == [[b"x" * turn] * comm.size for turn in range(5)]
        assert torch.equal(now, totals[0])
        assert (joined is None) == (comm.rank > 0)
        assert joined is None or joined.tolist() == [[float(r) for r in range(comm.size) for _ in range(r + 1)]] * 2
        for x, total in zip(given, totals, strict=True):
            assert torch.allclose(total, comm.all_reduce(x), atol=1e-5)


@pytest.mark.parametrize("strategy", ["none", "compressed", "auto"])
def test_a_model_computes_the_same_over_hosts_that_are_made_up(comm: Mpi, shared_folder: Path, strategy: str) -> None:
    folder = shared_folder / "links"
    if comm.rank == 0 and not folder.exists():
        write_checkpoint(folder)
    comm.collect(b"written")
    settings = ExchangeSettings(communication_strategy=strategy, compression_level=1)
    for per_host in (1, 2):
        facts = [dataclasses.replace(fact, host=f"host{fact.rank // per_host}") for fact in survey(comm)]
        chosen = choose_exchange(comm, facts, settings, crowded=True)
        assert comm.rank or bool(chosen.told) == (comm.size > 1)
        found = load_and_compute(chosen.comm, folder, PROMPT, [9, 1, 5, 1, 1], chosen.sums)
        if comm.rank == 0:
            assert found is not None
            worst = (found - reference_logits(folder, PROMPT)).abs().max()
            assert worst <= (1e-4 if strategy == "none" else 0.1)
