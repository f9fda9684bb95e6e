"""Define how the ranks of a group pass bytes to each other: what all algorithms of the exchange are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Parcel = tuple[int, Tensor]  # the other rank, and its bytes: uint8 [n], contiguous, on the CPU


class Link(Protocol):
    """The ranks of one group, as far as bytes go. All ranks make the same calls in the same order."""

    rank: int
    size: int

    def swap(self, sends: Sequence[Parcel], receives: Sequence[Parcel], what: str) -> None:
        """Send bytes and fill buffers with those of others; return when all have passed. Collective.

        No buffer is empty; what one rank sends another receives in the same call, in one piece of the same size. what:
        the collective for people, such as "all_reduce". Raise LostRank where a rank does not come within the limit.
        """
