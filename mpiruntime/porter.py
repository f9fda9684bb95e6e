"""Hand messages to the engine's loop, and answer those that cannot wait while the loop loads a model; rank 0."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from ollampi.mpiruntime.inbox import Client, Inbox
from ollampi.mpiruntime.request import Usage
from ollampi.mpiruntime.waiting_room import Waiting
from ollampi.mpiruntime.wire import Message

LATE_TEXT = "the request was not complete in its time; ask for less, or raise options.timeout or engine.timeout_s"
_LOOK_S = 0.02
_TIMED = ("generate", "embed", "load", "place")


class Answered(Exception):
    """The message at hand was answered while its model was being loaded."""


class Porter:
    """An inbox with deadlines; `at_hand` is the message that is being acted on, None once it is answered.

    timeout_s: after which any request ends; refused: where late ones are counted.
    """

    def __init__(self, inbox: Inbox, timeout_s: float | None, refused: Counter[str]) -> None:
        self._inbox = inbox
        self._timeout_s = timeout_s
        self._refused = refused
        self._kept: deque[Waiting] = deque()
        self.at_hand: Waiting | None = None

    def get(self, timeout_s: float) -> Waiting | None:
        """Return the next message, or None where none came in time."""
        if self._kept:
            return self._kept.popleft()
        taken = self._inbox.get(timeout_s)
        return None if taken is None else self._dated(*taken)

    def put_back(self, several: list[Waiting]) -> None:
        """Keep messages to be returned before all others, in order."""
        self._kept.extendleft(reversed(several))

    def refuse_late(self, waiting: Waiting) -> None:
        """Answer a message whose deadline has passed."""
        waiting.refuse("timeout", LATE_TEXT)
        self._refused["timeout"] += 1

    @contextmanager
    def standing_in(self, beside: Callable[[float], None]) -> Iterator[None]:
        """Have a thread keep the messages that come while the caller is busy inside.

        It answers those that are late or cancelled, the one at hand too, and calls `beside` with the time, whose
        exception is raised here. The caller must not use what `beside` uses. Raise Answered where the message at hand
        is answered.
        """
        has_message = self.at_hand is not None
        over = threading.Event()
        failures: list[Exception] = []
        thread = threading.Thread(target=self._stand_in, args=(over, beside, failures))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if failures:
                raise failures[0]
        if has_message and self.at_hand is None:
            raise Answered

    def _stand_in(self, over: threading.Event, beside: Callable[[float], None], failures: list[Exception]) -> None:
        """Do what a loop that loads cannot do."""
        try:
            while not over.is_set():
                if (taken := self._inbox.get(_LOOK_S)) is not None:
                    self._keep(self._dated(*taken))
                self._refuse_late(time.monotonic())
                beside(time.monotonic())
        except Exception as e:
            failures.append(e)

    def _refuse_late(self, now: float) -> None:
        """Answer the messages whose deadline has passed."""
        for waiting in self._drop(lambda w: w.deadline <= now):
            self.refuse_late(waiting)

    def _keep(self, waiting: Waiting) -> None:
        """Keep a message, unless it cancels another one that is kept or at hand."""
        client, number = waiting.client, waiting.id
        if waiting.message.get("op") == "gone":
            self._drop(lambda w: w.client is client)
        elif waiting.message.get("op") == "cancel":
            dropped = self._drop(lambda w: w.client is client and w.id == number and w.message.get("op") in _TIMED)
            for _ in dropped:
                client.post({"id": number, "kind": "done", "reason": "cancel", "usage": asdict(Usage())})
            if dropped:
                return
        self._kept.append(waiting)

    def _drop(self, concerns: Callable[[Waiting], bool]) -> list[Waiting]:
        """Return the messages, kept or at hand, that `concerns` names, and forget them."""
        found = [waiting for waiting in self._kept if concerns(waiting)]
        self._kept = deque(waiting for waiting in self._kept if not concerns(waiting))
        if self.at_hand is not None and concerns(self.at_hand):
            found.append(self.at_hand)
            self.at_hand = None
        return found

    def _dated(self, client: Client, message: Message) -> Waiting:
        """Return a message with its deadline: some ask for one themselves, the server's holds for all."""
        arrived = message.setdefault("arrived", time.monotonic())
        asked = message.get("timeout_s"), message.get("request", {}).get("timeout_s")
        timeouts = [t for t in (*asked, self._timeout_s) if t is not None]
        deadline = arrived + min(timeouts, default=math.inf) if message.get("op") in _TIMED else math.inf
        return Waiting(client, message, set(), deadline)
