"""Assert what every communicator makes of sums that are under way and of rows that one rank has."""

from __future__ import annotations

import torch

from ollampi.mpiruntime.communicator import Communicator


def assert_sums_under_way(comm: Communicator) -> None:
    """Assert that two sums may be under way, and that each is the one that all_reduce makes; collective."""
    parts = [torch.arange(12.0).view(3, 4) * (comm.rank + factor) for factor in (1, 5)]
    waits = [comm.all_reduce_later(part) for part in parts]
    expected = [torch.arange(12.0).view(3, 4) * sum(r + factor for r in range(comm.size)) for factor in (1, 5)]
    for wait, total in zip(waits, expected, strict=True):
        assert torch.equal(wait(), total)


def assert_shared_rows(comm: Communicator) -> None:
    """Assert that each row is its owner's, in every dtype of a table, whatever the others have there; collective."""
    for owners in ([0], [comm.size - 1] * 3, [(7 * t) % comm.size for t in range(11)]):
        for dtype in (torch.float32, torch.bfloat16):
            everybody = torch.arange(len(owners) * 5 * comm.size).view(comm.size, -1, 5).sin().to(dtype)
            rows = everybody[comm.rank].clone()
            rows[[t for t, owner in enumerate(owners) if owner != comm.rank]] = torch.inf
            found = comm.share_rows(rows, torch.tensor(owners))
            assert found.dtype == torch.float32
            assert torch.equal(found, torch.stack([everybody[owner, t] for t, owner in enumerate(owners)]).float())
