"""Act on messages about whole models and the job: load, place, unload, list, leave. Rank 0, main thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.cluster_view import placement_of
from ollampi.mpiruntime.errors import AbsentError, ConflictError, OllampiError
from ollampi.mpiruntime.eviction import NotYet
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.inbox import Client, Event, Inbox
from ollampi.mpiruntime.request import ModelRef, Usage
from ollampi.mpiruntime.take_over import TakeOver
from ollampi.mpiruntime.wire import Message

COMMANDS = ("unload", "unload idle", "leave")  # which want no model's work, so that refusing them refuses no request
_TELL_S = 0.1  # between two events about the progress of a load


class ClusterOps:
    """What the engine's loop does for those who manage the job.

    check_open: raises where a model must not be asked for now, as Engine's; end: ends the job after so many seconds at
    the latest; stops_at: returns when it ends on time.monotonic's clock, None where it does not; take_over: what takes
    single ranks out.
    """

    def __init__(
        self,
        models: Models,
        inbox: Inbox,
        check_open: Callable[[ModelRef], None],
        end: Callable[[float], None],
        stops_at: Callable[[], float | None],
        take_over: TakeOver,
    ) -> None:
        self._models = models
        self._inbox = inbox
        self._check_open = check_open
        self._end = end
        self._stops_at = stops_at
        self._take_over = take_over
        self._leavers: list[tuple[Client, int]] = []
        self._placing: dict[str, tuple[Client, int, float]] = {}  # who placed a model, and when to tell them more
        self._told = models.runner.progress
        models.runner.progress = self._tell

    def act(self, client: Client, message: Message) -> None:
        """Act on one message, on none of another kind; raise OllampiError for its sender, NotYet where it must wait."""
        op, number = message.get("op"), message.get("id", 0)
        if op == "load":
            ref = ModelRef(**message["model"])
            self._check_open(ref)
            self._models.get(ref, message["context"]).keep(message["keep_alive_s"])
            _done(client, number, "load", int((time.monotonic() - message["began"]) * 1e9))
        elif op == "place":
            self._place(client, number, message)
        elif op == "unload":
            self._await_load(message["model"]["name"])
            self._models.unload_when_idle(message["model"]["name"])
            _done(client, number, "unload")
        elif op == "unload idle":
            self._await_load(message["model"]["name"])
            self._unload_idle(message["model"]["name"])
            _done(client, number, "unload")
        elif op == "loaded":
            client.post({"id": number, "kind": "loaded", "models": [asdict(m) for m in self._models.listing()]})
        elif op == "leave":
            self._leave(client, number, message["graceful"], message["timeout_s"], message.get("rank"))
        elif op == "come back":
            self._take_over.come_back(message["rank"])
            client.post({"id": number, "kind": "back"})
        elif (answer := self._inbox.aside.get(str(op))) is not None:  # it came before there was one
            answer(client, message)

    def farewell(self, unfinished: int) -> None:
        """Tell those who had the job leave that it has left, with so many requests unfinished."""
        self._take_over.end()
        for client, number in self._leavers:
            client.post({"id": number, "kind": "farewell", "unfinished": unfinished})

    def _place(self, client: Client, number: int, message: Message) -> None:
        """Place a model as it is wished; its sender learns how far that is, and then where it lies."""
        ref, wish = ModelRef(**message["model"]), Wish.from_wire(message)
        self._check_open(ref)
        if self._models.loading is None:  # else another one hears of this load
            self._placing = {ref.name: (client, number, 0.0)}
        try:
            placed = self._models.place(ref, wish)
        except NotYet:
            raise
        except OllampiError:
            if self._placing.get(ref.name, ())[:2] == (client, number):
                self._placing = {}  # a later load is not this one's
            raise
        self._placing = {}
        placed.replicas[0].keep(wish.keep_alive_s)
        client.post({"id": number, "kind": "placed", "placement": asdict(placement_of(placed))})

    def _tell(self, name: str, passed: int, total: int) -> None:
        """Tell how many bytes of a load have passed, also who placed the model; called by the thread that loads."""
        self._told(name, passed, total)
        client, number, next_s = self._placing.get(name, (None, 0, 0.0))
        if client is not None and (now := time.monotonic()) >= next_s:
            self._placing[name] = client, number, now + _TELL_S
            client.post({"id": number, "kind": "progress", "completed": passed, "total": total})

    def _await_load(self, name: str) -> None:
        """Raise NotYet where a model is being loaded."""
        loading = self._models.loading
        if loading is not None and loading.name == name:
            raise NotYet({name})

    def _unload_idle(self, name: str) -> None:
        """Unload a model; raise AbsentError where it is not there, ConflictError where it is at work, NotYet."""
        placed = next((placed for placed in self._models.placed() if placed.ref.name == name), None)
        if placed is None:
            raise AbsentError(f"model '{name}' is not loaded; `cluster model list` names those that are")
        if not placed.idle:
            running = sum(len(r.scheduler.running) + len(r.scheduler.waiting) for r in placed.replicas)
            requests = f"{running} request{'' if running == 1 else 's'}"
            raise ConflictError(
                f"model '{name}' is busy with {requests}; wait for them, or send a request with keep_alive 0,"
                " which unloads it after them"
            )
        loading = self._models.loading
        if loading is not None and any(map(self._models.is_held_up, placed.replicas)):
            raise NotYet({name, loading.name})  # its ranks can free it when they have loaded
        self._models.unload_when_idle(name)

    def _leave(self, client: Client, number: int, graceful: bool, timeout_s: float, rank: int | None) -> None:
        """End the job, or take one rank out, now or when its requests are done.

        Raise ConflictError where that is so already, or cannot be; NotYet where a rank must wait for a load.
        """
        ends = self._stops_at()
        if (graceful or rank is not None) and ends is not None:
            left_s = math.ceil(max(0.0, ends - time.monotonic()))
            raise ConflictError(
                f"the job is leaving already: it ends when its running requests are done, in {left_s} s at the latest;"
                " graceful=false ends it now"
            )
        limit_s = timeout_s if graceful else 0.0
        if rank is not None:
            told = partial(_answer, client, number)
            self._take_over.leave(rank, time.monotonic() + limit_s, told)
            return
        self._leavers.append((client, number))
        self._end(limit_s)


def _answer(client: Client, number: int, event: Event) -> None:
    """Post the event that answers a message."""
    client.post({"id": number, **event})


def _done(client: Client, number: int, reason: str, load_ns: int = 0) -> None:
    """Post the end of a request without text."""
    client.post({"id": number, "kind": "done", "reason": reason, "usage": asdict(Usage(load_ns=load_ns))})
