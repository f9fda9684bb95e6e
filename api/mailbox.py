"""Hand the messages about one request to the thread that waits for them, or past it where nothing has to wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]


class Mailbox:
    """The messages about one request, in order. One thread brings them, one takes them."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = False  # the taker waits, and nothing is left for it to do
        self._handle: Callable[[Message], bool] | None = None
        self._catch_up: Callable[[], None] = _nothing

    def divert(self, handle: Callable[[Message], bool], catch_up: Callable[[], None]) -> None:
        """Let the bringer handle messages of kind tokens while the taker waits and all before them are done with.

        handle must not wait; it returns whether nothing is left to do. Else the taker wakes, runs catch_up and gets a
        message without tokens. Where handle fails, the taker gets what it raised, as `error` of a message `broken`.
        """
        self._handle, self._catch_up = handle, catch_up

    def put(self, message: Message) -> None:
        """Bring a message; any thread may bring those that are not about tokens."""
        with self._lock:  # the taker wants it only for a moment when it begins to wait and when it wakes
            if self._idle and self._handle is not None and message["kind"] == "tokens":
                try:
                    if self._handle(message):
                        return
                    message = {"kind": "left"}
                except Exception as e:
                    message = {"kind": "broken", "error": e}
            self._idle = False
            self._messages.put(message)

    def get(self, timeout_s: float | None = None) -> Message:
        """Return the next message; raise queue.Empty. With the one before, the taker is done."""
        with self._lock:
            self._idle = self._messages.empty()
        try:
            message = self._messages.get(timeout=timeout_s)
        finally:
            with self._lock:
                self._idle = False
        if message["kind"] != "left":
            return message
        self._catch_up()
        return {"kind": "tokens", "tokens": []}


def _nothing() -> None:
    """Do nothing."""
