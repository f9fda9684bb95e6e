"""Play the coordinator at the other end of the HTTP process's socket."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import uuid
from array import array
from collections.abc import Iterator
from typing import Any

from ollampi.mpiruntime import wire
from ollampi.mpiruntime.request import Sample, Usage

USAGE = Usage(prompt_tokens=9, generated_tokens=2, load_ns=1_000_000, prompt_ns=50_000_000, decode_ns=150_000_000)


class FakeCoordinator:
    """The engine's end of the socket: a thread that records messages and answers by script.

    generate yields `tokens` one by one and is done, unless `silent`; then it waits for a cancel, as load does.
    """

    def __init__(self) -> None:
        self.address = f"unix:@ollampi-test-{uuid.uuid4().hex}"
        self.messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.tokens: list[int] = []
        self.models: list[dict[str, Any]] = []
        self.samples: list[Sample] = []
        self.well: dict[str, Any] = {"live": True, "reasons": []}
        self.error: tuple[str, str] | None = None
        self.silent = False
        self.deaf = False  # to cancels, scrapes and probes
        self.connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(wire.unix_address(self.address))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def expect(self, op: str, timeout_s: float = 5.0) -> dict[str, Any]:
        """Return the next message, which must be an `op`."""
        message = self.messages.get(timeout=timeout_s)
        assert message["op"] == op, message
        return message

    def send(self, number: int, *tokens: int, **event: Any) -> None:
        """Send an event about request `number` over the one connection: the next tokens, or whatever else."""
        event = event or {"kind": "tokens", "tokens": list(tokens), "logprobs": []}
        wire.send(self.connections[0], {"events": [{"id": number, **event}]})

    def hang_up(self) -> None:
        """Break every connection; new ones are still accepted."""
        while self.connections:
            with contextlib.suppress(OSError):  # the other side was faster
                self.connections.pop().shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all threads and sockets."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while True:
                    message = wire.receive(connection)
                    self.messages.put(message)
                    for event in self._answers(message):
                        wire.send(connection, {"events": [{"id": message["id"], **event}]})
            except wire.Closed:
                return

    def _answers(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        op = message["op"]
        if self.error:
            yield {"kind": "error", "code": self.error[0], "message": self.error[1]}
        elif op == "loaded":
            yield {"kind": "loaded", "models": self.models}
        elif op == "readiness" and not self.deaf:
            yield {"kind": "readiness", **self.well}
        elif op == "metrics" and not self.deaf:
            yield {"kind": "metrics", "samples": self.samples}
        elif (op in ("cancel", "metrics", "readiness") and self.deaf) or (op == "load" and self.silent):
            return
        elif op in ("load", "unload", "cancel"):
            yield {"kind": "done", "reason": op, "usage": vars(USAGE)}
        elif op == "embed":
            for place, prompt in enumerate(message["request"]["prompts"]):
                yield {"kind": "embedding", "place": place, "values": array("f", array("i", prompt)).tobytes()}
            if not self.silent:
                yield {"kind": "done", "reason": "stop", "usage": vars(USAGE)}
        else:
            for token in self.tokens:
                logprobs = [{"token": token, "logprob": -1.0, "top": [[3, -2.0]]}]
                yield {"kind": "tokens", "tokens": [token], "logprobs": logprobs}
            if not self.silent:
                yield {"kind": "done", "reason": "stop", "usage": vars(USAGE)}
