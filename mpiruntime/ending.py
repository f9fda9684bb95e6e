"""Decide when the engine's loop ends: now, or when all running requests are done. Rank 0 only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sized

DRAIN, END = 1, 2  # notes of any rank: finish what runs and end; end now


class Ending:
    """When the loop ends at the latest, on time.monotonic's clock: `at`, None where it does not.

    wished: whether somebody wants the job to end, since mpirun sends END also where another rank has died.

    drain_s: how long running requests may go on; running: all that have not ended; announce gets a line when it begins.
    """

    def __init__(self, drain_s: float, running: Sized, announce: Callable[[str], None]) -> None:
        self.at: float | None = None
        self.wished = False
        self._drain_s = drain_s
        self._running = running
        self._announce = announce

    def take(self, note: int) -> None:
        """End now (END), or when all running requests are done (DRAIN).

        A signal to mpirun reaches every rank, so the same note comes many times.
        """
        now = time.monotonic()
        if note == END:
            if self.at is None or self.at > now:
                self._announce(f"stopping; requests that end unfinished: {len(self._running)}")
            self.at = now
        else:
            self.drain(self._drain_s)

    def drain(self, limit_s: float) -> None:
        """End when all running requests are done, after so many seconds at the latest; 0 is now."""
        self.wished = True
        if not limit_s:
            self.take(END)
        elif self.at is None:
            self._announce(f"draining for at most {limit_s:g} s; running requests: {len(self._running)}")
            self.at = time.monotonic() + limit_s

    def left_s(self) -> float | None:
        """Return the seconds after which the loop ends at the latest, None where it does not end; for any thread."""
        return None if (ends := self.at) is None else max(0.0, ends - time.monotonic())

    def over(self, working: bool) -> bool:
        """Return whether the loop is over."""
        return self.at is not None and (not working or time.monotonic() >= self.at)
