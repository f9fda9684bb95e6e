"""Layers that are read in every step, on the ranks of a real MPI job: the bits of the model in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.checkpoints import PROMPT, write_checkpoint
from support.worlds import lead, load_message, logits_in_pieces

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Unload

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("quantize", ["none", "q4"])
def test_the_bits_are_those_of_the_model_in_memory(comm: Communicator, shared_folder: Path, quantize: str) -> None:
    folder = shared_folder / "streamed"
    if comm.rank == 0 and not folder.exists():
        write_checkpoint(folder, num_hidden_layers=5, head_dim=32)
    comm.collect(b"written")
    resident = load_message(folder, quantize=quantize)
    streamed = replace(resident, num_streamed=4, prefetch_factor=1, shard_cache=str(shared_folder / "cache"))

    def work(runner: Runner) -> list[torch.Tensor]:
        found = []
        for load in (resident, streamed, streamed):  # with a file that is written, and one that is found
            reports = runner.lead_load(load)
            found.append(logits_in_pieces(runner, PROMPT, [9, 5, 1, 1, 1]))
            runner.lead(Unload(0))
            assert all(bool(report.step_bytes) == bool(load.num_streamed) for report in reports)
        return found

    found = lead(comm, work)
    assert found is None or all(torch.equal(found[0], logits) for logits in found)
