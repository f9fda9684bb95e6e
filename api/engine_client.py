"""Say what the HTTP layer needs of an engine: requests in, a stream of events out."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ollampi.mpiruntime.cluster import Cluster, Placement, Wish
from ollampi.mpiruntime.errors import OllampiError
from ollampi.mpiruntime.request import (
    EmbedRequest,
    GenerateRequest,
    LoadedModel,
    ModelRef,
    Readiness,
    Sample,
    TokenLogprob,
    Usage,
)


class EngineError(OllampiError):
    """The engine refused or lost a request.

    code: absent, busy, conflict, context, memory, model, shutdown, internal, request, unavailable (no connection),
    restarting (no ranks now; others come), ended (there will be none again) or cancelled.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Tokens:
    """The next tokens of an answer, with their log-probabilities where those were asked for."""

    tokens: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class Embedding:
    """The pooled hidden state of the input at `place` of a request, not normalised."""

    place: int
    values: array[float]


@dataclass(frozen=True)
class Done:
    """The end of an answer; reason is stop, length, load, unload or cancel."""

    reason: str
    usage: Usage


@dataclass(frozen=True)
class Loading:
    """How many bytes of a model have been read, and of how many."""

    completed: int
    total: int


@dataclass(frozen=True)
class Placed:
    """The end of a load: where the model lies."""

    placement: Placement


@dataclass(frozen=True)
class Departure:
    """The end of a rank's part: how many requests were not finished, and what became of its replicas, in words."""

    unfinished: int
    moved: list[str]


Event = Tokens | Embedding | Done | Loading | Placed
E = TypeVar("E", covariant=True)


class Stream(Protocol[E]):
    """The events of one request, in order; the last one is Done."""

    def __iter__(self) -> Iterator[E]:
        """Return the events; raise EngineError where the engine gives the request up."""
        ...

    def cancel(self, reason: str = "cancel") -> None:
        """Tell the engine to stop; safe from any thread, any number of times, and after the end.

        reason is what the engine counts: stop or length where the answer is complete as it is.
        """
        ...

    def divert(self, push: Callable[[E], bool], catch_up: Callable[[], None]) -> None:
        """Let the thread that brings events hand tokens to `push`, while whoever iterates waits for the next event.

        push must not wait; it returns whether nothing is left to do. Else, or where it raises, the iterating thread
        goes on: it runs catch_up and gets Tokens without tokens, or what push raised.
        """
        ...

    def close(self) -> None:
        """Cancel the request unless it has ended, and forget it; nobody reads its events any more."""
        ...


class Engine(Protocol):
    """What serves requests: the coordinator behind a socket, or a fake in a test."""

    def generate(self, request: GenerateRequest) -> Stream[Tokens | Done]:
        """Start a request and return its stream; raise EngineError where it cannot be sent."""
        ...

    def embed(self, request: EmbedRequest) -> Stream[Embedding | Done]:
        """Start a request and return its stream, with one Embedding per input in any order; raise as `generate`."""
        ...

    def load(
        self, model: ModelRef, context: int | None, keep_alive_s: float | None, timeout_s: float | None = None
    ) -> Stream[Done]:
        """Start to load a model and return its stream, whose only event is Done; raise EngineError as `generate`."""
        ...

    def unload(self, model: ModelRef) -> None:
        """Unload a model, whether it is loaded or not; raise EngineError where it fails."""
        ...

    def unload_idle(self, model: ModelRef) -> None:
        """Unload a model; raise EngineError where it is not there (absent) or at work (conflict)."""
        ...

    def place(self, model: ModelRef, wish: Wish) -> Stream[Loading | Placed]:
        """Start to place a model and return its stream, which ends with Placed; raise EngineError as `generate`."""
        ...

    def cluster(self) -> Cluster:
        """Return what the job is like, whatever it does now; raise EngineError where the engine is away."""
        ...

    def leave(self, graceful: bool, timeout_s: float) -> int:
        """End the job, graceful once its requests are done; return how many were not when it had to.

        Raise EngineError where it is leaving already (conflict).
        """
        ...

    def take_out(self, rank: int, graceful: bool, timeout_s: float) -> Departure:
        """Have other ranks take over from one, graceful once its requests are done; return what became of them.

        Raise EngineError where none can, or the rank or the job is leaving already (conflict).
        """
        ...

    def take_in(self, rank: int) -> None:
        """Place models on a rank again that was taken out; raise EngineError where it was not (conflict)."""
        ...

    def loaded(self) -> list[LoadedModel]:
        """Return the models in memory; raise EngineError where the engine does not answer."""
        ...

    def readiness(self) -> Readiness:
        """Return whether the job can serve, soon; raise EngineError where rank 0 does not answer."""
        ...

    def metrics(self) -> list[Sample]:
        """Return what engine and ranks counted; raise EngineError where the engine does not answer in time."""
        ...

    def log_from(self, level: str) -> None:
        """Have all ranks log from a level on, debug to error; raise EngineError where the engine does not answer."""
        ...
