"""Wait for signals, ended children and other threads in one place."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any


class Wake:
    """Inside `with`, these signals do nothing but end a `wait`, as the end of a child does. Main thread only.

    A signal that is ignored, as nohup has it, stays so.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]

    def __enter__(self) -> Wake:
        """Begin to take the signals."""
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)
        self._there.setblocking(False)
        self._fd = signal.set_wakeup_fd(self._there.fileno(), warn_on_full_buffer=False)
        taken = (*self._numbers, signal.SIGCHLD)
        self._handlers: dict[int, Any] = {number: signal.signal(number, _nothing) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the signals to whoever had them before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd)
        self._here.close()
        self._there.close()

    def wait(self, timeout_s: float | None) -> set[int]:
        """Return the signals that came since the last call, after waiting for one, a child, a poke, or so long."""
        if not select.select([self._here], [], [], timeout_s)[0]:
            return set()
        return set(self._here.recv(65536)) & set(self._numbers)

    def poke(self) -> None:
        """End a `wait`; any thread may."""
        with suppress(OSError):  # so many are there already that nobody sleeps
            self._there.send(b"\0")


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the number is in the socket already."""
