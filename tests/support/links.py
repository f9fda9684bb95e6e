"""Worlds of links, and what every link must do."""

from __future__ import annotations

import torch
from torch import Tensor

from ollampi.mpiruntime.link import Link


def check_swaps(link: Link) -> None:
    """Assert that bytes reach the ranks that they are for, in pieces of any size, many times; collective."""
    others = [r for r in range(link.size) if r != link.rank]
    for count in (1, 33, 8192, 300_001):
        for turn in range(2):
            sent = {r: _bytes(link.rank, r, count + r + turn) for r in others}
            got = {r: torch.zeros(count + link.rank + turn, dtype=torch.uint8) for r in others}
            link.swap(list(sent.items()), list(got.items()), "test")
            for r in others:
                assert torch.equal(got[r], _bytes(r, link.rank, count + link.rank + turn))
    ring = (link.rank + 1) % link.size, (link.rank - 1) % link.size
    for turn in range(40):  # to one side only, and at times not at all
        if link.size > 1 and turn % 7:
            part = torch.zeros(turn, dtype=torch.uint8)
            link.swap([(ring[0], _bytes(link.rank, turn, turn))], [(ring[1], part)], "test")
            assert torch.equal(part, _bytes(ring[1], turn, turn))
        else:
            link.swap([], [], "test")


def _bytes(sender: int, receiver: int, count: int) -> Tensor:
    """Return bytes [count] that depend on all of these."""
    return (torch.arange(count) * 31 + 7 * sender + 3 * receiver).to(torch.uint8)
