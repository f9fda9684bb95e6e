"""Act on messages about whole models: load, place, unload, list. Rank 0, main thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.inbox import Client
from ollampi.mpiruntime.request import ModelRef, Usage
from ollampi.mpiruntime.strategy import Wish
from ollampi.mpiruntime.wire import Message


class ModelOps:
    """What the engine's loop does for those who manage models.

    check_open: raises where a model must not be asked for now, as Engine's.
    """

    def __init__(self, models: Models, check_open: Callable[[ModelRef], None]) -> None:
        self._models = models
        self._check_open = check_open

    def act(self, client: Client, message: Message) -> None:
        """Act on one message, on none of another kind; raise OllampiError for its sender, NotYet where it must wait."""
        op, number = message.get("op"), message.get("id", 0)
        if op == "load":
            ref, began = ModelRef(**message["model"]), time.monotonic()
            self._check_open(ref)
            self._models.get(ref, message["context"]).keep(message["keep_alive_s"])
            _done(client, number, "load", int((time.monotonic() - began) * 1e9))
        elif op == "place":
            self._place(client, number, message)
        elif op == "unload":
            self._models.unload_when_idle(message["model"]["name"])
            _done(client, number, "unload")
        elif op == "loaded":
            client.post({"id": number, "kind": "loaded", "models": [asdict(m) for m in self._models.listing()]})

    def _place(self, client: Client, number: int, message: Message) -> None:
        """Place a model as it is wished, unless it lies so."""
        ref = ModelRef(**message["model"])
        self._check_open(ref)
        placed = self._models.place(ref, Wish.from_wire(message))
        placed.replicas[0].keep(message["keep_alive_s"])
        client.post({"id": number, "kind": "placed", "placement": placed.entry()})


def _done(client: Client, number: int, reason: str, load_ns: int = 0) -> None:
    """Post the end of a request without text."""
    client.post({"id": number, "kind": "done", "reason": reason, "usage": asdict(Usage(load_ns=load_ns))})
