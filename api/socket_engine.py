"""Reach the coordinator over one Unix socket: a reader thread hands each event to the request it belongs to."""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Generic, TypeVar

from ollampi.api.engine_client import Departure, Done, Embedding, EngineError, Loading, Placed, Tokens
from ollampi.api.engine_events import done_of, embedding_of, error_of, model_of, placing_of, tokens_of
from ollampi.api.mailbox import Mailbox, Message
from ollampi.api.whereabouts import Whereabouts
from ollampi.mpiruntime import wire
from ollampi.mpiruntime.cluster import Cluster, Wish
from ollampi.mpiruntime.errors import OllampiError
from ollampi.mpiruntime.request import EmbedRequest, GenerateRequest, LoadedModel, ModelRef, Readiness, Sample

QUERY_TIMEOUT_S = 10.0
READINESS_TIMEOUT_S = 2.0
METRICS_TIMEOUT_S = 5.0  # Prometheus itself waits 10 s unless told otherwise
CANCEL_TIMEOUT_S = 5.0  # how long a cancelled request waits for its last event

_E = TypeVar("_E")


class _Connection:
    """One connection and the inboxes of the requests that were sent over it."""

    def __init__(self, where: Whereabouts) -> None:
        self._where = where
        self._socket = where.connect()
        self._inboxes: dict[int, Mailbox] = {}
        self._lock = threading.Lock()  # inboxes and `alive`
        self._send_lock = threading.Lock()
        self.alive = True
        self._ending: str | None = None  # why the engine ends, once it has said so
        threading.Thread(target=self._read, name="engine-reader", daemon=True).start()

    def open(self, number: int, message: Message) -> Mailbox:
        """Send the first message of request `number`; return where its events arrive. Raise Closed."""
        inbox = Mailbox()
        with self._lock:
            if not self.alive:
                raise wire.Closed("the connection broke earlier")
            self._inboxes[number] = inbox
        try:
            self.send(message)
        except wire.Closed:
            self.forget(number)
            raise
        return inbox

    def send(self, message: Message) -> None:
        """Send one message; block until the kernel has it. Raise Closed."""
        with self._send_lock:
            wire.send(self._socket, message)

    def forget(self, number: int) -> None:
        """Drop the events of request `number` from now on."""
        with self._lock:
            self._inboxes.pop(number, None)

    def close(self) -> None:
        """Break the connection; its open requests fail."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            self._fail_all()

    def _read(self) -> None:
        """Hand events to their inboxes until the connection breaks."""
        try:
            while True:
                for event in wire.receive(self._socket)["events"]:
                    self._deliver(event)
        except (OllampiError, ValueError, TypeError, KeyError):
            self._fail_all()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            with self._send_lock:  # never close a descriptor that a sender still uses
                self._socket.close()

    @property
    def is_last(self) -> bool:
        """Return whether there will be no engine any more."""
        return self._where.is_over(self._ending)

    def gone(self) -> EngineError:
        """Return what whoever asked over this connection is told, once it is broken."""
        return self._where.gone(self._ending)

    def _deliver(self, event: Message) -> None:
        if event.get("kind") == "ending":
            self._ending = event["message"]
        with self._lock:
            inbox = self._inboxes.get(event["id"])
        if inbox is not None:
            inbox.put(event)

    def _fail_all(self) -> None:
        with self._lock:
            self.alive = False
            inboxes, self._inboxes = list(self._inboxes.values()), {}
        for inbox in inboxes:
            inbox.put({"kind": "error", "code": (gone := self.gone()).code, "message": str(gone)})


class SocketStream(Generic[_E]):
    """The events of one request on a connection; `read` makes them of messages."""

    def __init__(self, read: Callable[[Message], _E], connection: _Connection, number: int, inbox: Mailbox) -> None:
        self._read = read
        self._connection = connection
        self._number = number
        self._inbox = inbox
        self._lock = threading.Lock()
        self._open = True

    def __iter__(self) -> Iterator[_E]:
        """Yield the events up to Done; raise EngineError where the engine gives the request up."""
        timeout_s = None
        while True:
            try:
                event = self._inbox.get(timeout_s)
            except queue.Empty:
                event = {"kind": "error", "code": "cancelled", "message": "request canceled"}
            if event["kind"] == "broken":
                raise event["error"]
            if event["kind"] == "cancelling":
                timeout_s = CANCEL_TIMEOUT_S
                continue
            if event["kind"] in ("tokens", "embedding", "progress"):
                yield self._read(event)
                continue
            self._finish()
            if event["kind"] not in ("done", "placed"):
                raise error_of(event)
            yield self._read(event)
            return

    def cancel(self, reason: str = "cancel") -> None:
        """Tell the engine to stop, once; the stream still ends with its last event, or without it after a while."""
        with self._lock:
            was_open, self._open = self._open, False
        if was_open:
            self._inbox.put({"kind": "cancelling"})
            try:
                self._connection.send({"op": "cancel", "id": self._number, "reason": reason})
            except wire.Closed:
                self._connection.close()

    def divert(self, push: Callable[[_E], bool], catch_up: Callable[[], None]) -> None:
        """Let the engine reader's thread hand tokens to `push`, while whoever iterates waits for the next event."""
        self._inbox.divert(lambda event: push(self._read(event)), catch_up)

    def close(self) -> None:
        """Cancel the request unless it has ended, and drop its events from now on."""
        self.cancel()
        self._connection.forget(self._number)

    def _finish(self) -> None:
        with self._lock:
            self._open = False
        self._connection.forget(self._number)


class SocketEngine:
    """An Engine over a socket; connects when first used and again after the connection broke."""

    def __init__(self, where: Whereabouts) -> None:
        self._where = where
        self._numbers = itertools.count(1)
        self._connection: _Connection | None = None
        self._lock = threading.Lock()

    def generate(self, request: GenerateRequest) -> SocketStream[Tokens | Done]:
        """Start a request and return its stream; raise EngineError where the coordinator cannot be reached."""
        return SocketStream(tokens_of, *self._open({"op": "generate", "request": request.to_wire()}))

    def embed(self, request: EmbedRequest) -> SocketStream[Embedding | Done]:
        """Start a request and return its stream; raise EngineError where the coordinator cannot be reached."""
        return SocketStream(embedding_of, *self._open({"op": "embed", "request": request.to_wire()}))

    def load(
        self, model: ModelRef, context: int | None, keep_alive_s: float | None, timeout_s: float | None = None
    ) -> SocketStream[Done]:
        """Start to load a model, however long that takes; raise EngineError where the coordinator cannot be reached."""
        message = {"op": "load", "model": model_of(model), "context": context, "keep_alive_s": keep_alive_s}
        message["timeout_s"] = timeout_s
        return SocketStream(done_of, *self._open(message))

    def unload(self, model: ModelRef) -> None:
        """Unload a model and wait until it is gone; raise EngineError."""
        self._ask({"op": "unload", "model": model_of(model)}, None)

    def unload_idle(self, model: ModelRef) -> None:
        """Unload a model that is at rest; raise EngineError."""
        self._ask({"op": "unload idle", "model": model_of(model)}, None)

    def place(self, model: ModelRef, wish: Wish) -> SocketStream[Loading | Placed]:
        """Start to place a model, however long that takes; raise EngineError where the engine cannot be reached."""
        return SocketStream(placing_of, *self._open({"op": "place", "model": model_of(model), **asdict(wish)}))

    def cluster(self) -> Cluster:
        """Return what the job is like; raise EngineError."""
        return Cluster.from_wire(self._ask({"op": "cluster"}, QUERY_TIMEOUT_S)["cluster"])

    def leave(self, graceful: bool, timeout_s: float) -> int:
        """End the job and return how many requests were not done; raise EngineError."""
        event = self._ask({"op": "leave", "graceful": graceful, "timeout_s": timeout_s}, None)
        return int(event["unfinished"])

    def take_out(self, rank: int, graceful: bool, timeout_s: float) -> Departure:
        """Have other ranks take over from one and return what became of its replicas; raise EngineError."""
        event = self._ask({"op": "leave", "graceful": graceful, "timeout_s": timeout_s, "rank": rank}, None)
        return Departure(int(event["unfinished"]), list(event["moved"]))

    def take_in(self, rank: int) -> None:
        """Place models on a rank again that was taken out; raise EngineError."""
        self._ask({"op": "come back", "rank": rank}, QUERY_TIMEOUT_S)

    def loaded(self) -> list[LoadedModel]:
        """Return the models in memory; raise EngineError."""
        event = self._ask({"op": "loaded"}, QUERY_TIMEOUT_S)
        return [LoadedModel(**values) for values in event["models"]]

    def readiness(self) -> Readiness:
        """Return whether the job can serve; raise EngineError where rank 0, which need not be idle, does not answer."""
        event = self._ask({"op": "readiness"}, READINESS_TIMEOUT_S)
        return Readiness(event["live"], [(rank, why) for rank, why in event["reasons"]])

    def metrics(self) -> list[Sample]:
        """Return what engine and ranks counted; raise EngineError, also where a model is being loaded for long."""
        event = self._ask({"op": "metrics"}, METRICS_TIMEOUT_S)
        return [(name, labels, value) for name, labels, value in event["samples"]]

    def log_from(self, level: str) -> None:
        """Have all ranks log from a level on; raise EngineError."""
        self._ask({"op": "log_level", "level": level}, QUERY_TIMEOUT_S)

    def close(self) -> None:
        """Break the connection; open streams fail with code unavailable."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _ask(self, message: Message, timeout_s: float | None) -> Message:
        """Send a message and return its one answer."""
        connection, number, inbox = self._open(message)
        try:
            event = inbox.get(timeout_s)
        except queue.Empty:
            raise EngineError("unavailable", "the engine does not answer; try again in a few seconds") from None
        finally:
            connection.forget(number)
        if event["kind"] == "error":
            raise error_of(event)
        return event

    def _open(self, message: Message) -> tuple[_Connection, int, Mailbox]:
        """Send the first message of a request; a connection that proves dead is replaced once."""
        number = next(self._numbers)
        for _ in range(2):
            connection = self._connected()
            try:
                return connection, number, connection.open(number, {**message, "id": number})
            except wire.Closed:
                self._drop(connection)
        raise connection.gone()

    def _connected(self) -> _Connection:
        with self._lock:
            if self._connection is not None and self._connection.is_last:
                raise self._connection.gone()
            if self._connection is None or not self._connection.alive:
                self._connection = _Connection(self._where)
            return self._connection

    def _drop(self, connection: _Connection) -> None:
        with self._lock:
            if self._connection is connection and not connection.is_last:
                self._connection = None
        connection.close()
