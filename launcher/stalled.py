"""End a job in which a load brings no byte any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOKS = 20  # within the limit
_LONGEST_S = 1.0  # between two looks


class LoadWatch:
    """The watch over the loads of one rank. A file system that hangs holds the reading thread for ever.

    limit_s: how long nothing may come; lost: called once, with what is to be said.
    """

    def __init__(self, limit_s: float, lost: Callable[[str], None]) -> None:
        self._limit_s = limit_s
        self._lost = lost
        self._name = "a model"
        self._since = 0.0

    def tick(self, name: str, passed: int, total: int) -> None:
        """Note that bytes of a load came."""
        self._name, self._since = name, time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the load that this block does."""
        self._name, self._since, over = "a model", time.monotonic(), threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), name="load-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        """Look until the load is over, or brings nothing."""
        while not over.wait(min(self._limit_s / _LOOKS, _LONGEST_S)):
            if time.monotonic() - self._since > self._limit_s:
                self._lost(
                    f"the load of {self._name} has brought nothing for {self._limit_s:g} s: look whether the file"
                    " system answers; raise engine.load_timeout_s where that may take longer"
                )
                return
