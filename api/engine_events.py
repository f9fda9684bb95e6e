"""Read the events of the engine: what the wire has, as the HTTP layer knows it."""

from __future__ import annotations

from array import array

from ollampi.api.engine_client import Done, Embedding, EngineError, Loading, Placed, Tokens
from ollampi.api.mailbox import Message
from ollampi.mpiruntime.cluster import placement_from
from ollampi.mpiruntime.request import ModelRef, TokenLogprob, Usage


def model_of(model: ModelRef) -> Message:
    """Return a model as the wire has it."""
    return {"name": model.name, "path": model.path}


def placing_of(event: Message) -> Loading | Placed:
    """Return what an event says of a load; raise EngineError where it was cancelled."""
    if event["kind"] == "progress":
        return Loading(event["completed"], event["total"])
    if event["kind"] == "done":
        raise EngineError("cancelled", "request canceled")
    return Placed(placement_from(event["placement"]))


def done_of(event: Message) -> Done:
    """Return the end of an answer."""
    return Done(event["reason"], Usage(**event["usage"]))


def embedding_of(event: Message) -> Embedding | Done:
    """Return an embedding, or the end of the request."""
    if event["kind"] == "done":
        return done_of(event)
    return Embedding(event["place"], array("f", event["values"]))


def tokens_of(event: Message) -> Tokens | Done:
    """Return tokens, or the end of the answer."""
    if event["kind"] == "done":
        return done_of(event)
    logprobs = [
        TokenLogprob(entry["token"], entry["logprob"], [(token, value) for token, value in entry["top"]])
        for entry in event.get("logprobs") or []
    ]
    return Tokens(event["tokens"], logprobs)


def error_of(event: Message) -> EngineError:
    """Return the error that an event tells."""
    return EngineError(event.get("code", "internal"), event.get("message", "the engine failed"))
