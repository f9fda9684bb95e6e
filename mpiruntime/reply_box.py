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
    """The answers of groups without rank 0 by the number of their model, each with at most one under way.

    where: what the watchdog sees of rank 0, which may wait for these for as long as their ranks' processes answer.
    """

    def __init__(self, comm: Communicator) -> None:
        self.where = Place()
        self._comm = comm
        self._expected: set[int] = set()
        self._came: dict[int, Reply] = {}

    @property
    def num_expected(self) -> int:
        """Return how many answers are under way."""
        return len(self._expected)

    def expect(self, number: int) -> None:
        """Take note that an answer about a model is under way."""
        self._expected.add(number)
        self._say()

    def has(self, number: int) -> bool:
        """Return whether an answer about a model has come."""
        self._look()
        return number in self._came

    def take(self, number: int) -> Reply:
        """Return the answer about a model, once it has come."""
        spin_until = time.monotonic() + _SPIN_S
        while not self.has(number):
            _pause(spin_until)
        return self._came.pop(number)

    def wait(self, limit_s: float) -> None:
        """Return once any answer has come since, or a time is over."""
        count, until = len(self._expected), time.monotonic() + limit_s
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
                self._came[reply.number] = reply
                self._expected.discard(reply.number)
                self._say()
        return len(self._expected)

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
