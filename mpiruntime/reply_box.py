"""Keep what other ranks answer to rank 0 until it is wanted; rank 0 only."""

from __future__ import annotations

import os
import time

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.replies import Reply, decode_reply
from ollampi.mpiruntime.watchdog import Place

_SPIN_S = 0.02  # as long as a step of a small model may take
_SLEEP_S = 0.0005


class ReplyBox:
    """The answers of ranks by the number of their model, each with those to one message under way at most.

    where: what the watchdog sees of rank 0, which may wait for these for as long as their ranks' processes answer.
    """

    def __init__(self, comm: Communicator) -> None:
        self.where = Place()
        self._comm = comm
        self._expected: dict[int, int] = {}
        self._came: dict[int, list[Reply]] = {}

    @property
    def num_expected(self) -> int:
        """Return how many answers are under way."""
        return sum(self._expected.values())

    def expect(self, number: int, count: int = 1) -> None:
        """Take note that so many ranks will answer about a model."""
        if count:
            self._expected[number] = self._expected.get(number, 0) + count
            self._say()

    def has(self, number: int) -> bool:
        """Return whether all answers about a model have come that were expected."""
        self._look()
        return number not in self._expected

    def failed(self, number: int) -> bool:
        """Return whether an answer about a model that has come is an error."""
        self._look()
        return any(reply.error for reply in self._came.get(number, []))

    def take(self, number: int) -> list[Reply]:
        """Return the answers about a model in the order of their ranks, once all have come."""
        spin_until = time.monotonic() + _SPIN_S
        while not self.has(number):
            _pause(spin_until)
        return sorted(self._came.pop(number, []), key=lambda reply: reply.rank)

    def wait(self, limit_s: float) -> None:
        """Return once any answer has come since, or a time is over."""
        count, until = self.num_expected, time.monotonic() + limit_s
        while self._look() == count and time.monotonic() < until:
            _pause(until)

    def drain(self) -> None:
        """Take all answers that are under way and drop them."""
        while self._expected:
            self.wait(_SPIN_S)
        self._came.clear()

    def _look(self) -> int:
        """Take what has come; return how many answers are still under way."""
        if self._expected:
            for data in self._comm.answers():
                reply = decode_reply(data)
                self._came.setdefault(reply.number, []).append(reply)
                self._expected[reply.number] -= 1
                if not self._expected[reply.number]:
                    del self._expected[reply.number]
                self._say()
        return self.num_expected

    def _say(self) -> None:
        """Tell the watchdog whether rank 0 waits."""
        if self._expected:
            self.where.come("answers", False)
        else:
            self.where.go()


def _pause(spin_until: float) -> None:
    """Give way to others, and later sleep a little."""
    if time.monotonic() < spin_until:
        os.sched_yield()
    else:
        time.sleep(_SLEEP_S)
