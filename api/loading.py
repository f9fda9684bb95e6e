"""Load or unload a model for a request that brings no text."""

from __future__ import annotations

from flask import request

from ollampi.api.disconnect import DisconnectWatcher
from ollampi.api.engine_client import Engine, EngineError
from ollampi.mpiruntime.request import ModelRef


def load_or_unload(
    engine: Engine,
    watcher: DisconnectWatcher,
    model: ModelRef,
    context: int | None,
    keep_alive_s: float | None,
    timeout_s: float | None,
) -> str:
    """Return "unload" once the model is gone where keep_alive_s is 0, or else "load" once it is there.

    A client that leaves cancels a load that still waits for other models. Raise EngineError, also where the load takes
    longer than timeout_s; the model is there later.
    """
    if keep_alive_s == 0:
        engine.unload(model)
        return "unload"
    stream = engine.load(model, context, keep_alive_s, timeout_s)
    with watcher.following(request.environ.get("gunicorn.socket"), stream):
        if any(event.reason == "cancel" for event in stream):
            raise EngineError("cancelled", "request canceled")
    return "load"
