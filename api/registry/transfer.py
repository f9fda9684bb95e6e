"""Hold what a pull or push is told, its limits, and the way to end its threads."""

from __future__ import annotations

import random
import socket
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ollampi.api.errors import ApiError
from ollampi.mpiruntime.errors import OllampiError

T = TypeVar("T")
PIECE_BYTES = 4 << 20  # of a blob: one request, and the most that a stream holds in memory
MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True)
class Limits:
    """How patient a transfer is: tries for each piece, seconds to connect, seconds without a byte, first delay."""

    num_tries: int = 6
    connect_s: float = 10.0
    stall_s: float = 30.0
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    num_redirects: int = 5


@dataclass(frozen=True)
class TransferOptions:
    """What a pull or push is told.

    registries: hosts that may have private addresses, as the setting has them; insecure: plain HTTP to one of them;
    source: the URL of another server of ours to pull from, None for the registry that the name gives; hub_endpoint:
    Hugging Face's URL, None for what HF_ENDPOINT says; num_streams: pieces of a blob under way at one time.
    """

    registries: tuple[str, ...] = ()
    insecure: bool = False
    source: str | None = None
    hub_endpoint: str | None = None
    num_streams: int = 4
    limits: Limits = field(default_factory=Limits)


class TransientError(OllampiError):
    """Something that may pass: worth another try, `after_s` seconds from now where the server said so."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class CancelledError(OllampiError):
    """The transfer was ended from outside."""


class Cancel:
    """Ends all threads of one transfer: wakes those that sleep, and breaks the connections that others read from."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """End the transfer; may be called by any thread, more than once."""
        self._event.set()
        with self._lock:
            for each in list(self._sockets):
                _break(each)

    @property
    def is_set(self) -> bool:
        """Return whether the transfer was ended."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise CancelledError where the transfer was ended."""
        if self._event.is_set():
            raise CancelledError("the transfer was cancelled")

    def sleep(self, seconds: float) -> None:
        """Wait; raise CancelledError as soon as the transfer is ended."""
        self._event.wait(seconds)
        self.check()

    def watch(self, connected: socket.socket) -> None:
        """Break a connection too where the transfer is or was ended."""
        with self._lock:
            self._sockets.add(connected)
        if self._event.is_set():
            _break(connected)


def retried(work: Callable[[], T], cancel: Cancel, limits: Limits) -> T:
    """Return what `work` returns, tried again with growing, random delays as long as it raises TransientError.

    Raise ApiError (500) with the last reason after the last try.
    """
    for num_tries in range(1, limits.num_tries + 1):
        cancel.check()
        try:
            return work()
        except TransientError as e:
            cancel.check()  # a connection that we broke ourselves is no reason
            if num_tries == limits.num_tries:
                raise ApiError(500, f"{e}, {num_tries} times; try again later, what is there already is kept") from e
            cancel.sleep(_delay(num_tries, e.after_s, limits))
    raise AssertionError("unreachable")


def _delay(num_tries: int, after_s: float | None, limits: Limits) -> float:
    """Return how long to wait after so many tries: doubled each time, at least half of it, or what the server said."""
    if after_s is not None:
        return min(after_s, MAX_RETRY_AFTER_S)
    longest = min(limits.max_delay_s, limits.first_delay_s * 2.0 ** (num_tries - 1))
    return longest * random.uniform(0.5, 1.0)


def _break(connected: socket.socket) -> None:
    """Wake who reads from or writes to a socket; SSLSocket's own shutdown would take its state from under them."""
    try:
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
    except OSError:
        return
