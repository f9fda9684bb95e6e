"""Bring messages of the HTTP process to the coordinator's main thread and its answers back, through queues."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from ollampi.mpiruntime import wire

Event = dict[str, Any]
Aside = Callable[["Client", wire.Message], None]
_GONE: wire.Message = {"op": "gone"}
_LAST_WORDS_S = 0.3  # how long a client that is behind may take to read why it is abandoned


class Client(Protocol):
    """Whoever sent a message."""

    def post(self, event: Event) -> None:
        """Send an event; never blocks and never fails, an event for a client that is gone is dropped."""

    def collect(self, event: Event) -> None:
        """Keep an event until the inbox is flushed or another one is posted, then send them together."""


class Inbox(Protocol):
    """Where the engine's loop takes its messages from.

    aside: who answers messages with such an `op` in the thread that reads them, so that they wait for no step or load.
    """

    aside: dict[str, Aside]

    def get(self, timeout_s: float) -> tuple[Client, wire.Message] | None:
        """Return the next message and its sender, or None where none came in time. 0 does not wait."""

    def flush(self) -> None:
        """Send what all clients have collected; never blocks."""


class Local:
    """An inbox and client inside one process: for the first load, tests and benchmarks."""

    def __init__(self) -> None:
        self.aside: dict[str, Aside] = {}
        self.messages: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def post(self, event: Event) -> None:
        """Keep the event in `events`."""
        self.events.put(event)

    def collect(self, event: Event) -> None:
        """Keep the event in `events`."""
        self.post(event)

    def flush(self) -> None:
        """Do nothing: no event waits."""

    def get(self, timeout_s: float) -> tuple[Client, wire.Message] | None:
        """Return the next message put into `messages`."""
        try:
            return self, self.messages.get(timeout=timeout_s) if timeout_s else self.messages.get_nowait()
        except queue.Empty:
            return None


class SocketClient:
    """One connection of the HTTP process: a thread reads its messages, another writes what does not fit at once."""

    def __init__(self, connection: socket.socket, deliver: Callable[[SocketClient, wire.Message], None]) -> None:
        self._connection = connection
        self._deliver = deliver
        self._collected: list[Event] = []
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # is held only for moments
        self._behind = False  # the writer has something to send
        self._writer = threading.Thread(target=self._write, daemon=True)

    def start(self) -> None:
        """Begin to read and write."""
        self._writer.start()
        threading.Thread(target=self._read, daemon=True).start()

    def post(self, event: Event) -> None:
        """Send the event behind those collected, or leave it to the writer."""
        with self._lock:
            self._collected.append(event)
            self._send()

    def collect(self, event: Event) -> None:
        """Keep the event until the next flush."""
        with self._lock:
            self._collected.append(event)

    def flush(self) -> None:
        """Send what was collected in one frame, or leave to the writer what does not fit.

        The engine's thread sends: another one would first have to wait until the engine lets go of Python's lock.
        """
        with self._lock:
            if self._collected:
                self._send()

    def close(self, timeout_s: float | None) -> None:
        """Send what is queued, then close the connection; waits at most timeout_s where one is given."""
        self._frames.put(None)
        self._writer.join(timeout_s)
        with self._lock:
            self._connection.close()

    def abandon(self, ending: Event) -> None:
        """Send a last event, where the peer reads, and break the connection."""
        self.post(ending)
        end = time.monotonic() + _LAST_WORDS_S
        while self._behind and time.monotonic() < end:
            time.sleep(0.01)
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        """Deliver every message; at the end of the connection close it and tell the engine that this client is gone."""
        try:
            while True:
                self._deliver(self, wire.receive(self._connection))
        except (wire.Closed, ValueError):
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # a writer that waits for its peer wakes up
            self.close(timeout_s=None)
            self._deliver(self, _GONE)

    def _send(self) -> None:
        """Send what was collected, or leave it to the writer; the lock is held."""
        frame, self._collected = wire.frame({"events": self._collected}), []
        rest = frame if self._behind else wire.send_now(self._connection, frame)
        if rest:
            self._behind = True
            self._frames.put(rest)

    def _write(self) -> None:
        """Send the queued frames."""
        while (frame := self._frames.get()) is not None:
            try:
                self._connection.sendall(frame)
            except OSError:
                return
            with self._lock:
                self._behind = not self._frames.empty()


class SocketInbox:
    """Listens at an address of this host for processes of the same user."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.aside: dict[str, Aside] = {}
        self._messages: queue.SimpleQueue[tuple[Client, wire.Message]] = queue.SimpleQueue()
        self._clients: set[SocketClient] = set()
        self._ending: Event | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(wire.unix_address(address))
        self._listener.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    def get(self, timeout_s: float) -> tuple[Client, wire.Message] | None:
        """Return the next message and its sender, or None where none came in time."""
        try:
            return self._messages.get(timeout=timeout_s) if timeout_s else self._messages.get_nowait()
        except queue.Empty:
            return None

    def flush(self) -> None:
        """Send what all clients have collected."""
        for client in list(self._clients):
            client.flush()

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop listening, send what is queued and close all connections."""
        self._listener.close()
        for client in list(self._clients):
            client.close(timeout_s)

    def abandon(self, reason: str) -> None:
        """Break all connections, those to come too, so that whoever waits learns that there will be no answer, and why.

        Called by any thread.
        """
        self._ending = {"id": 0, "kind": "ending", "message": reason}
        for client in list(self._clients):
            client.abandon(self._ending)

    def _accept(self) -> None:
        """Take connections until the listener is closed; the kernel says whose they are."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:
                    return
                time.sleep(0.1)  # no descriptor is free now
                continue
            if wire.peer_uid(connection) not in (0, os.getuid()):
                connection.close()
                continue
            client = SocketClient(connection, self._deliver)
            self._clients.add(client)
            client.start()
            if self._ending is not None:
                client.abandon(self._ending)

    def _deliver(self, client: SocketClient, message: wire.Message) -> None:
        """Queue a message for the engine; forget a client that is gone."""
        if message is _GONE:
            self._clients.discard(client)
        elif (answer := self.aside.get(str(message.get("op")))) is not None:
            _answer(answer, client, message)
            return
        else:
            message["arrived"] = time.monotonic()  # a loop that is busy with a load may take it much later
        self._messages.put((client, message))


def _answer(answer: Aside, client: Client, message: wire.Message) -> None:
    """Answer a message; a failure is its sender's answer, and the thread that reads goes on."""
    try:
        answer(client, message)
    except Exception as e:
        client.post({"id": message.get("id", 0), "kind": "error", "code": "internal", "message": str(e)})
