"""Rank 0 of a real MPI job reads for all, and whatever fails on one rank is told on all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import FAMILIES, PROMPT, write_checkpoint
from support.worlds import lead, load_message, logits_in_pieces

from ollampi.kernels import pages
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.runner import Runner

pytestmark = pytest.mark.mpi


def written(comm: Communicator, folder: Path, family: str) -> Path:
    """Return a model's folder, written by rank 0; collective."""
    if comm.rank == 0 and not folder.exists():
        write_checkpoint(folder, **FAMILIES[family])
    comm.collect(b"written")
    return folder


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama3", {}),
        ("llama3", {"dtype": "bfloat16"}),
        ("llama3", {"quantize": "q8"}),
        ("mixtral", {}),
        ("mixtral", {"experts": "spread"}),
    ],
)
def test_rank_0_may_read_for_all(comm: Communicator, shared_folder: Path, family: str, fields: dict[str, Any]) -> None:
    if fields.get("quantize") and comm.size > 2:
        pytest.skip("groups of 32 cannot be cut so often")
    folder = written(comm, shared_folder / f"read-{family}", family)

    def work(runner: Runner) -> None:
        found = []
        for how in ("slices", "scatter"):
            reports = runner.lead_load(load_message(folder, load=how, **fields))
            found.append(logits_in_pieces(runner, PROMPT, [9, 1, 5, 1, 1]))
        assert torch.equal(*found)
        assert [r.read_bytes > 0 for r in reports] == [r.rank == 0 for r in reports]

    lead(comm, work)


def test_what_fails_on_the_last_rank_ends_the_load_on_all(
    comm: Communicator, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = written(comm, shared_folder / "read-llama3", "llama3"), 0

    def empty(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise MemoryError
        return torch.empty(arguments[0], dtype=arguments[1])

    if comm.rank == comm.size - 1:
        monkeypatch.setattr(pages, "empty", empty)

    def work(runner: Runner) -> None:
        with pytest.raises(ModelError, match=f"rank {comm.size - 1}"):
            runner.lead_load(load_message(folder, load="scatter"))
        runner.lead_load(load_message(folder, load="scatter"))

    lead(comm, work)


def test_bytes_are_shared(comm: Communicator) -> None:
    x = torch.full((3, 1 << 19), comm.rank + 7, dtype=torch.int16)
    comm.share(x)
    assert bool((x == 7).all())
