"""Deterministic arithmetic on the ranks of a real MPI job: the bits of a world of one."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from support.checkpoints import PROMPT, write_checkpoint
from support.worlds import lead, load_message, logits_in_pieces

from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.runner import Runner

pytestmark = pytest.mark.mpi


def digest(comm: Communicator, folder: Path, dtype: str, pieces: list[int]) -> str | None:
    """Return the digest of all bits of the logits on rank 0 and None elsewhere; collective."""

    def work(runner: Runner) -> str:
        runner.lead_load(load_message(folder, dtype, deterministic=True))
        return sha256(logits_in_pieces(runner, PROMPT, pieces).numpy().tobytes()).hexdigest()

    return lead(comm, work)


def test_all_reduce_keeps_fp64(comm: Communicator) -> None:
    total = comm.all_reduce(torch.full((3,), 1 + comm.rank * 2.0**-40, dtype=torch.float64))
    expected = comm.size + sum(range(comm.size)) * 2.0**-40
    assert total.dtype == torch.float64
    assert torch.equal(total, torch.full((3,), expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bits_are_those_of_one_rank(comm: Communicator, shared_folder: Path, dtype: str) -> None:
    folder = shared_folder / "deterministic"
    if comm.rank == 0 and not folder.exists():
        write_checkpoint(folder)
    comm.collect(b"written")
    found = digest(comm, folder, dtype, [9, 1, 5, 1, 1])
    alone = digest(Single(), folder, dtype, [17])
    assert found in (alone, None)
    assert alone is not None
    assert comm.rank or found == alone
