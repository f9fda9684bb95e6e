"""Notice clients that leave while their request is queued, computed or streamed."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ollampi.api.engine_client import Event, Stream

_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


class DisconnectWatcher:
    """One thread that polls the client sockets of running requests; it starts with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}  # file descriptor -> what to do when its peer leaves
        self._wake_fd: int | None = None

    def watch(self, client: socket.socket | None, on_gone: Callable[[], None]) -> Callable[[], None]:
        """Call `on_gone` once if the client leaves; return what ends the watch. None, as in tests, is not watched."""
        if client is None or client.fileno() < 0:
            return _nothing
        number = client.fileno()
        with self._lock:
            self._watched[number] = on_gone
            self._start()
        self._wake()
        return lambda: self._forget(number, on_gone)

    @contextmanager
    def following(self, client: socket.socket | None, stream: Stream[Event]) -> Iterator[None]:
        """Cancel a request where its client leaves while the block runs, and close it at the end."""
        unwatch = self.watch(client, stream.cancel)
        try:
            yield
        finally:
            unwatch()
            stream.close()

    def _forget(self, number: int, on_gone: Callable[[], None]) -> None:
        with self._lock:
            if self._watched.get(number) is on_gone:
                del self._watched[number]
        self._wake()

    def _start(self) -> None:
        if self._wake_fd is None:
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            threading.Thread(target=self._run, args=(self._wake_fd,), name="disconnect-watcher", daemon=True).start()

    def _wake(self) -> None:
        if self._wake_fd is not None:
            os.eventfd_write(self._wake_fd, 1)

    def _run(self, wake_fd: int) -> None:
        """Poll for ever."""
        while True:
            poll = select.poll()
            poll.register(wake_fd, select.POLLIN)
            with self._lock:
                watched = dict(self._watched)
            for number in watched:
                poll.register(number, select.POLLRDHUP)
            for number, events in poll.poll():
                if number == wake_fd:
                    os.eventfd_read(wake_fd)
                elif events & _GONE:
                    self._tell(number, watched[number])

    def _tell(self, number: int, on_gone: Callable[[], None]) -> None:
        """Report one client, unless its descriptor went to another request since poll() looked."""
        with self._lock:
            if self._watched.get(number) is not on_gone:
                return
            del self._watched[number]
        on_gone()


def _nothing() -> None:
    """Do nothing."""
