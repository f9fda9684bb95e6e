"""Where the HTTP process and rank 0 of each start find each other: the keeper's side of both conversations.

What is said is in api/whereabouts and launcher/keeper_link. The kernel tells whose process connects.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

from ollampi.launcher.keeper_link import KEEPER, SECRET
from ollampi.mpiruntime import wire

_PATIENCE_S = 10.0  # with a process that connects and says nothing


@dataclass
class Start:
    """How far the ranks of one start are; times by time.monotonic(), None where it has not come to that.

    address: of rank 0's inbox while it is there; ready_at: when its model was; is_done: whether it was asked to end;
    left_at: when rank 0 went.
    """

    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    address: str | None = None
    ready_at: float | None = None
    is_done: bool = False
    left_at: float | None = None


class Meeting:
    """Listens inside `with`. bound: host and port of the HTTP process; changed: called by any thread after news."""

    def __init__(self, bound: tuple[str, int], changed: Callable[[], None]) -> None:
        self.address = f"unix:@ollampi-{os.getpid()}-{secrets.token_hex(8)}"
        self.start = Start()
        self._absent = {"code": "restarting", "message": "the ranks are starting; try again in a few seconds"}
        self.bound = bound
        self._changed = changed
        self._is_over = False
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> Meeting:
        """Begin to listen."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(wire.unix_address(self.address))
        self._listener.listen(64)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up."""
        self._is_over = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def expect(self) -> dict[str, str]:
        """Return what the environment of the next ranks must have; from now on only they are heard."""
        with self._lock:
            self.start = Start()
        return {KEEPER: self.address, SECRET: self.start.secret}

    def settled(self, timeout_s: float) -> Start:
        """Return how far the ranks were, which have ended, once all that their rank 0 said is read; waits so long."""
        end = time.monotonic() + timeout_s
        while self.start.address is not None and time.monotonic() < end:
            time.sleep(0.01)
        return self.start

    def tell(self, code: str, message: str) -> None:
        """Set what the HTTP process is told while there is no rank 0: the code of an EngineError, and a text."""
        self._absent = {"code": code, "message": message}

    def _accept(self) -> None:
        """Serve each connection in a thread."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._is_over:
                    return
                time.sleep(0.1)  # no descriptor is free now
                continue
            if wire.peer_uid(connection) not in (0, os.getuid()):
                connection.close()
                continue
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self._connections.add(connection)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer the HTTP process, or follow a rank 0 until it goes."""
        with connection, suppress(wire.Closed, OSError, ValueError, KeyError, TypeError):
            connection.settimeout(_PATIENCE_S)
            message = wire.receive(connection)
            if message["op"] == "where":
                address = self.start.address
                wire.send(connection, self._absent if address is None else {"address": address})
            elif message["op"] == "here":
                self._follow(connection, message)
        with self._lock:
            self._connections.discard(connection)

    def _follow(self, connection: socket.socket, message: wire.Message) -> None:
        """Note what a rank 0 says until it goes; refuse one of an earlier start."""
        start = self.start
        if not hmac.compare_digest(start.secret, str(message["secret"])):
            wire.send(connection, {"refused": "they are of an earlier start"})
            return
        start.address = message["address"]
        try:
            wire.send(connection, {"bound": list(self.bound)})
            connection.settimeout(None)
            while True:
                op = wire.receive(connection)["op"]
                if op == "ready":
                    start.ready_at = time.monotonic()
                elif op == "done":
                    start.is_done = True
                self._changed()
        finally:
            if self._absent["code"] == "restarting":
                self.tell("restarting", "the ranks have ended and are being started again; try again in a few seconds")
            start.address, start.left_at = None, time.monotonic()
            self._changed()
