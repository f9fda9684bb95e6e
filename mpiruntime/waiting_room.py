"""Keep the messages that cannot be acted on before a model lets go of the memory or the name that they need."""

from __future__ import annotations

from dataclasses import dataclass

from ollampi.mpiruntime.errors import BusyError
from ollampi.mpiruntime.inbox import Client
from ollampi.mpiruntime.wire import Message


@dataclass(frozen=True)
class Waiting:
    """A message with its sender, the models that must become idle first, and its deadline on time.monotonic's clock."""

    client: Client
    message: Message
    names: set[str]
    deadline: float

    @property
    def id(self) -> int:
        """Return the number that the sender gave the message."""
        return int(self.message.get("id", 0))

    def refuse(self, code: str, text: str) -> None:
        """Answer with an error."""
        self.client.post({"id": self.id, "kind": "error", "code": code, "message": text})


class WaitingRoom:
    """Messages in order of arrival."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def concerns(self, name: str) -> bool:
        """Return whether somebody waits for or on the model `name`; a later request for it must not pass."""
        return any(name in waiting.names for waiting in self._waiting)

    def add(self, waiting: Waiting) -> None:
        """Keep a message; raise BusyError where the room is full. One has a place even where nobody shall queue.

        Else no request could have a model loaded.
        """
        if len(self._waiting) >= max(self._limit, 1):
            raise BusyError("server busy, please try again.  maximum pending requests exceeded")
        self._waiting.append(waiting)

    def drop(self, client: Client, number: int | None = None) -> bool:
        """Forget a client's message, or all of them; return whether there was one."""
        kept = [w for w in self._waiting if w.client is not client or number not in (None, w.id)]
        dropped = len(kept) < len(self._waiting)
        self._waiting = kept
        return dropped

    def late(self, now: float) -> list[Waiting]:
        """Return the messages whose deadline has passed and forget them."""
        late = [w for w in self._waiting if w.deadline <= now]
        self._waiting = [w for w in self._waiting if w.deadline > now]
        return late

    def refuse(self, code: str, text: str) -> int:
        """Answer all messages with an error and forget them; return how many there were."""
        refused = self.empty()
        for waiting in refused:
            waiting.refuse(code, text)
        return len(refused)

    def empty(self) -> list[Waiting]:
        """Return all messages and forget them."""
        waiting, self._waiting = self._waiting, []
        return waiting
