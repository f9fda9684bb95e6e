"""Say how far a model is read: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from ollampi.launcher.rate import Rate
from ollampi.launcher.supervise import TERMINAL
from ollampi.mpiruntime.memory import human

_EVERY_S = {True: 0.2, False: 10.0}  # between two lines, by whether they move
_BAR, _COLUMNS = 8, 79
_SHORTEST_NAME = 8
_ABOVE = "\x1b[A\x1b[2K"  # goes up a line and clears it: mpirun passes on whole lines only, so each ends with one


def on_terminal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether what is written to a stream reaches a terminal that moves the cursor."""
    return (stream.isatty() or environ.get(TERMINAL) == "1") and environ.get("TERM", "dumb") != "dumb"


class Progress:
    """Write how far a load is with `write`; nothing of those that are over before the first line is due.

    moving: whether a line takes the place of the one before, which holds only while nobody else writes.
    """

    def __init__(self, write: Callable[[str], Any], moving: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.moving = moving
        self._write, self._clock = write, clock
        self._name, self._passed = "", 0
        self._due, self._drawn = 0.0, False
        self._rate = Rate(clock)

    def __call__(self, name: str, passed: int, total: int) -> None:
        """Note that so many bytes of a model are done."""
        now = self._clock()
        if name != self._name or passed < self._passed:
            self._name, self._passed, self._drawn, self._due = name, 0, False, now + _EVERY_S[self.moving]
            self._rate = Rate(self._clock)
        self._rate.note(passed)
        over = passed >= total and passed > self._passed and self._drawn and self.moving
        self._passed = passed
        if now >= self._due or over:
            self._due = now + _EVERY_S[self.moving]
            self._write(f"{_ABOVE * (self._drawn and self.moving)}{self._line(passed, total)}\n")
            self._drawn = True

    def _line(self, passed: int, total: int) -> str:
        """Return one line, on a terminal of at most so many columns that it fits."""
        part = passed / max(1, total)
        bar = f" [{'#' * int(_BAR * part):.<{_BAR}}]" if self.moving else ""
        rest = f"{bar} {int(100 * part)} % of {human(total)}{self._speed(total - passed)}"
        room = max(_SHORTEST_NAME, _COLUMNS - len("ollampi: reading ") - len(rest))
        return f"ollampi: reading {self._name[:room]}{rest}"

    def _speed(self, left: int) -> str:
        """Return the rate of the last seconds, and what time the bytes that are left take at it."""
        if not self._rate.per_s:
            return ""
        return f", {human(int(self._rate.per_s))}/s" + (f", {self._rate.left(left)} left" if left else "")
