"""Tell how fast something goes on, and how long the rest will take."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

_OVER_S = 5.0  # the time over which a rate is taken


class Rate:
    """Keep how many bytes had passed in the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks = deque[tuple[float, int]]()  # when so many bytes had passed

    def note(self, passed: int) -> None:
        """Note how many bytes have passed by now."""
        now = self._clock()
        self._marks.append((now, passed))
        while len(self._marks) > 2 and self._marks[1][0] <= now - _OVER_S:
            self._marks.popleft()

    @property
    def per_s(self) -> float:
        """Return the bytes of a second, 0 where nothing is known."""
        if not self._marks:
            return 0.0
        (began, before), (now, passed) = self._marks[0], self._marks[-1]
        return (passed - before) / (now - began) if now > began and passed > before else 0.0

    def left(self, left: int) -> str:
        """Return what time so many bytes will take, "" where that is not known or none are left."""
        return short_time(left / self.per_s) if left > 0 and self.per_s else ""


def short_time(seconds: float) -> str:
    """Return a time in its largest unit, rounded up."""
    for size, unit in ((1, "s"), (60, "min")):
        if seconds <= 90 * size:
            return f"{math.ceil(seconds / size)} {unit}"
    return f"{math.ceil(seconds / 3600)} h"
