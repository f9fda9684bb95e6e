"""Carry the messages of watchdogs between the ranks of one process."""

from __future__ import annotations

from collections import deque


class Box:
    """A post between the ranks of one process; `cut`: those whose messages pass neither way."""

    def __init__(self, rank: int, boxes: list[deque[tuple[int, bytes]]], cut: set[int]) -> None:
        self.rank, self.size = rank, len(boxes)
        self._boxes, self._cut = boxes, cut

    def send(self, rank: int, message: bytes) -> None:
        """Put a message into another rank's box."""
        if not {rank, self.rank} & self._cut:
            self._boxes[rank].append((self.rank, message))

    def receive(self) -> list[tuple[int, bytes]]:
        """Return what is in the own box."""
        messages = list(self._boxes[self.rank])
        self._boxes[self.rank].clear()
        return messages
