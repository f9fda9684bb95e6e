"""Shared memory between the processes of a job: the same sums as through MPI, and nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from support.checkpoints import PROMPT, reference_logits, write_checkpoint
from support.worlds import load_and_compute

from ollampi.kernels import native
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.exchange import choose_exchange
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.shared_memory import SharedMemory, share_memory
from ollampi.mpiruntime.world import survey

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(native.library() is None, reason="the native kernels were not built"),
]


@pytest.fixture(scope="session")
def shared(comm: Communicator) -> SharedMemory:
    return share_memory(comm, crowded=comm.size > (os.cpu_count() or 1))


@pytest.mark.parametrize("length", [0, 1, 2048, 70_001, 1_048_576])
def test_sums_are_the_same_bits_on_all_ranks_and_near_those_of_mpi(
    comm: Communicator, shared: SharedMemory, length: int
) -> None:
    x = torch.randn(length, generator=torch.Generator().manual_seed(comm.rank))
    totals = [shared.all_reduce(x) for _ in range(3)]
    assert torch.allclose(totals[0], comm.all_reduce(x), atol=1e-5)
    for total in totals:
        assert len(set(comm.collect(total.numpy().tobytes()))) == 1
    whole = x.round().double()
    assert torch.equal(shared.all_reduce(whole), comm.all_reduce(whole))


def test_thousands_of_calls(comm: Communicator, shared: SharedMemory) -> None:
    for turn in range(3000):
        total = shared.all_reduce(torch.full((turn % 300,), float(comm.rank + turn)))
        assert torch.equal(total, torch.full_like(total, float(comm.size * turn + sum(range(comm.size)))))


@pytest.mark.parametrize("width", [1, 33, 50_000])
def test_gather_is_that_of_mpi(comm: Communicator, shared: SharedMemory, width: int) -> None:
    x = torch.randn(5, width + comm.rank)
    joined, expected = shared.gather(x), comm.gather(x)
    if joined is None or expected is None:
        assert joined is expected
        assert comm.rank
    else:
        assert torch.equal(joined, expected)


def test_messages_pass_through(comm: Communicator, shared: SharedMemory) -> None:
    assert shared.collect(b"x" * comm.rank) == [b"x" * r for r in range(comm.size)]
    assert shared.broadcast(b"hello" if comm.rank == 0 else None) == b"hello"


def test_the_choice_is_the_same_on_all_ranks_and_leaves_no_file(comm: Communicator) -> None:
    for wanted in ("auto", "shared", "mpi"):
        settings = ExchangeSettings(link=wanted)
        chosen = choose_exchange(comm, survey(comm), settings, crowded=comm.size > (os.cpu_count() or 1))
        assert len(set(comm.collect(chosen.told.encode()))) == 1
        if wanted == "shared":
            assert isinstance(chosen.comm, SharedMemory) == (comm.size > 1)
    own = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/ollampi-" in line]
    assert all(line.endswith("(deleted)") for line in own)


def test_logits_equal_the_reference(comm: Communicator, shared: SharedMemory, shared_folder: Path) -> None:
    folder = shared_folder / "shared-memory"
    if comm.rank == 0:
        write_checkpoint(folder)
    comm.collect(b"written")
    found = load_and_compute(shared, folder, PROMPT, [9, 1, 5, 1, 1])
    if comm.rank == 0:
        assert found is not None
        assert (found - reference_logits(folder, PROMPT)).abs().max() <= 1e-4
