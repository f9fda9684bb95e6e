"""Sums over hosts that are made up: the ranks of each share memory, their leaders talk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import PROMPT, reference_logits, write_checkpoint
from support.worlds import load_and_compute
from torch import Tensor

from ollampi.kernels import native
from ollampi.mpiruntime.communicator import Around, Communicator
from ollampi.mpiruntime.errors import WorldError
from ollampi.mpiruntime.hierarchical import Hierarchical, by_host, hierarchical
from ollampi.mpiruntime.shared_memory import SharedMemory
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import RankFacts, survey

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels were not built")
WORLDS = ("a", "aa", "ab", "abc", "aab", "aba", "abb", "abbccc", "cabbcc", "aaaa", "abab", "abcd")


def on_hosts(comm: Communicator, hosts: str) -> list[RankFacts]:
    """Return the facts of a world whose rank r is on the host named by the letter r of `hosts`."""
    return [dataclasses.replace(fact, host=hosts[fact.rank]) for fact in survey(comm)]


def run(hosts: str, work: Callable[[Hierarchical], object], folder: Path) -> list[object]:
    """Return what `work` returns on each rank; nothing is left in the folder for segments."""
    found = run_threads(len(hosts), lambda comm: work(hierarchical(comm, on_hosts(comm, hosts), True, folder=folder)))
    assert list(folder.iterdir()) == []
    return found


@pytest.mark.parametrize("hosts", WORLDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_are_right_and_the_same_bits_on_every_rank(tmp_path: Path, hosts: str, dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(len(hosts))
    shapes = [(0,), (0, 3), (1,), (3, 7), (2048,), (20001,), (3, 70001)]
    given = [[torch.randn(shape, generator=chance).to(dtype) for _ in hosts] for shape in shapes]

    def work(comm: Hierarchical) -> list[Tensor]:
        before = [parts[comm.rank].clone() for parts in given]
        waits = [comm.all_reduce_later(parts[comm.rank]) for parts in given]
        later = [wait() for wait in waits]
        totals = [comm.all_reduce(parts[comm.rank]) for parts in given]
        assert all(torch.equal(x, y) for x, y in zip(later, totals, strict=True))
        assert all(torch.equal(parts[comm.rank], x) for parts, x in zip(given, before, strict=True))
        return totals

    found = run(hosts, work, tmp_path)
    assert isinstance(found[0], list)
    for totals in found:
        assert isinstance(totals, list)
        for total, first, parts in zip(totals, found[0], given, strict=True):
            assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert total.numpy().tobytes() == first.numpy().tobytes()
            assert torch.allclose(total.double(), torch.stack(parts).double().sum(0), atol=1e-5)


@pytest.mark.parametrize("hosts", WORLDS)
def test_everything_else_is_that_of_the_world(tmp_path: Path, hosts: str) -> None:
    def work(comm: Hierarchical) -> None:
        for turn in range(50):
            joined = comm.gather(torch.full((2, comm.rank + 1), float(turn)))
            total = comm.all_reduce(torch.full((turn,), float(comm.rank)))
            assert torch.equal(total, torch.full((turn,), float(sum(range(len(hosts))))))
            assert joined is None if comm.rank else joined is not None
            assert joined is None or joined.tolist() == [[float(turn)] * sum(range(len(hosts) + 1))] * 2
        assert comm.collect(b"x" * comm.rank) == [b"x" * r for r in range(len(hosts))]
        assert comm.broadcast(None if comm.rank else b"hello") == b"hello"
        x = torch.full((5,), comm.rank)
        comm.share(x)
        assert x.tolist() == [0] * 5

    run(hosts, work, tmp_path)


@pytest.mark.parametrize("hosts", ["ab", "aab", "abb", "cabbcc"])
def test_leaders_may_talk_through_another_communicator(tmp_path: Path, hosts: str) -> None:
    """One that doubles: what it makes reaches every rank."""

    class Doubling(Around):
        def __init__(self, inner: Communicator) -> None:
            super().__init__(inner)
            self._inner = inner
            self.gather = inner.gather

        def all_reduce(self, x: Tensor) -> Tensor:
            return 2 * self._inner.all_reduce(x)

    def work(comm: Communicator) -> tuple[int, list[float]]:
        sizes: list[int] = []

        def between(leaders: Communicator) -> Communicator:
            sizes.append(leaders.size)
            return Doubling(leaders)

        chosen = hierarchical(comm, on_hosts(comm, hosts), True, between, tmp_path)
        return sum(sizes), chosen.all_reduce(torch.ones(2)).tolist()

    led = {hosts.index(host) for host in hosts}
    assert run_threads(len(hosts), work) == [
        (len(led) if rank in led else 0, [2.0 * len(hosts)] * 2) for rank in range(len(hosts))
    ]


def test_a_rank_that_is_alone_shares_no_memory(tmp_path: Path) -> None:
    found = run("abb", lambda comm: isinstance(comm._host, SharedMemory), tmp_path)
    assert found == [False, True, True]


def test_hosts_come_in_the_order_of_their_first_ranks() -> None:
    facts = run_threads(6, lambda comm: on_hosts(comm, "cabbca"))[0]
    assert by_host(facts) == [[0, 4], [1, 5], [2, 3]]


def test_a_host_without_shared_memory_is_named_on_all_ranks(tmp_path: Path) -> None:
    told = []

    def work(comm: Communicator) -> None:
        facts = on_hosts(comm, "abb")
        with pytest.raises(WorldError) as caught:
            hierarchical(comm, facts, True, folder=tmp_path / "none" if comm.rank else tmp_path)
        told.append(str(caught.value))

    run_threads(3, work)
    assert told == [told[0]] * 3
    assert told[0].startswith("host b: ")


@pytest.mark.parametrize("hosts", ["aab", "aba", "abcd"])
def test_logits_equal_the_reference(tmp_path: Path, hosts: str) -> None:
    write_checkpoint(tmp_path / "model")
    (tmp_path / "shm").mkdir()
    work = run(
        hosts, lambda comm: load_and_compute(comm, tmp_path / "model", PROMPT, [9, 1, 5, 1, 1]), tmp_path / "shm"
    )
    assert isinstance(work[0], Tensor)
    assert (work[0] - reference_logits(tmp_path / "model", PROMPT)).abs().max() <= 1e-4
