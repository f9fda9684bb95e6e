"""Bring how each rank is to rank 0, again and again, beside all work.

The beats travel with the messages of the watchdogs: through a communicator that carries nothing else, sent and taken by
the watchdog's thread, so that none waits behind activations or a busy main thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.vitals import Beat


class Heart:
    """The heart of one rank; `look` is called often, or before anybody asks, by any thread.

    read: makes a beat; send: brings it to rank 0; health: on rank 0, whose own beats need not travel.
    """

    def __init__(
        self,
        interval_s: float,
        read: Callable[[float], Beat],
        send: Callable[[Beat], None],
        health: Health | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._read = read
        self._send = send
        self._health = health
        self._next = 0.0
        self._lock = threading.Lock()

    def look(self, now: float) -> None:
        """Beat where it is time, at a time of time.monotonic; on rank 0 see who is silent."""
        with self._lock:
            if now >= self._next:
                self._next += self._interval_s
                if self._next <= now:  # beats that were missed are not made up for
                    self._next = now + self._interval_s
                with suppress(OSError):  # no descriptor is free now: the next one may do
                    self._beat(now)
        if self._health is not None:
            self._health.look(now)

    def _beat(self, now: float) -> None:
        """Bring a beat to rank 0; raise OSError."""
        beat = self._read(now)
        if self._health is None:
            self._send(beat)
        else:
            self._health.take(0, beat, now)
