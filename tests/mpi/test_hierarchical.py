"""Hosts that are made up, in a real job: several groups of shared memory on one machine."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from support.checkpoints import PROMPT, reference_logits, write_checkpoint
from support.worlds import load_and_compute

from ollampi.kernels import native
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.hierarchical import Hierarchical, hierarchical
from ollampi.mpiruntime.world import survey

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(native.library() is None, reason="the native kernels were not built"),
]


@pytest.fixture(scope="session", params=["one", "two", "turns", "each"])
def over_hosts(request: pytest.FixtureRequest, comm: Communicator) -> Hierarchical:
    """Return the world on one host, on two (the first has one rank), on two in turns, each rank on its own."""
    host = {"one": lambda r: 0, "two": lambda r: min(r, 1), "turns": lambda r: r % 2, "each": lambda r: r}
    facts = [dataclasses.replace(f, host=f"h{host[request.param](f.rank)}") for f in survey(comm)]
    return hierarchical(comm, facts, crowded=comm.size > (os.cpu_count() or 1))


@pytest.mark.parametrize("length", [0, 1, 2048, 70_001, 1_048_576])
def test_sums_are_the_same_bits_everywhere(comm: Communicator, over_hosts: Hierarchical, length: int) -> None:
    x = torch.randn(length, generator=torch.Generator().manual_seed(comm.rank))
    whole = x.round().double()
    for _ in range(3):
        total = over_hosts.all_reduce(x)
        assert torch.allclose(total, comm.all_reduce(x), atol=1e-5)
        assert len(set(comm.collect(total.numpy().tobytes()))) == 1
        assert torch.equal(over_hosts.all_reduce(whole), comm.all_reduce(whole))


def test_hundreds_of_calls(comm: Communicator, over_hosts: Hierarchical) -> None:
    for turn in range(500):
        total = over_hosts.all_reduce(torch.full((turn % 300,), float(comm.rank + turn)))
        assert torch.equal(total, torch.full_like(total, float(comm.size * turn + sum(range(comm.size)))))


def test_logits_equal_the_reference(comm: Communicator, over_hosts: Hierarchical, shared_folder: Path) -> None:
    folder = shared_folder / "over-hosts"
    if comm.rank == 0:
        write_checkpoint(folder)
    comm.collect(b"written")
    found = load_and_compute(over_hosts, folder, PROMPT, [9, 1, 5, 1, 1])
    if comm.rank == 0:
        assert found is not None
        assert (found - reference_logits(folder, PROMPT)).abs().max() <= 1e-4


def test_some_ranks_have_a_world_of_their_own(comm: Communicator) -> None:
    ranks = [r for r in range(comm.size) if r % 2 == comm.rank % 2]
    part = comm.within(ranks)
    assert (part.rank, part.size) == (ranks.index(comm.rank), len(ranks))
    assert part.collect(str(comm.rank).encode()) == [str(r).encode() for r in ranks]
    assert torch.equal(part.all_reduce(torch.ones(3)), torch.full((3,), float(len(ranks))))
    assert part.broadcast(None if part.rank else b"x") == b"x"
