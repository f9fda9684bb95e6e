"""Offer the route that changes how much all processes of the server log."""

from __future__ import annotations

from flask import Response

from ollampi.api.access import Permission
from ollampi.api.engine_client import Engine
from ollampi.api.errors import bad_request, shown
from ollampi.api.routes import Route
from ollampi.api.stream import json_answer
from ollampi.api.wires.body import Body
from ollampi.api.wires.ollama_answers import Answer
from ollampi.mpiruntime.log_files import LEVELS, set_level


class LogLevelBody(Body):
    """POST /api/cluster/log-level: debug, info, warning or error."""

    level: str = ""


class LogLevel(Answer):
    """POST /api/cluster/log-level."""

    level: str


def log_routes(engine: Engine) -> list[Route]:
    """Return the route."""

    def change(body: LogLevelBody) -> Response:
        """Answer POST /api/cluster/log-level; raise ApiError, EngineError."""
        if body.level not in LEVELS:
            raise bad_request(f"level is {shown(body.level, 50)!r}; it must be one of {', '.join(LEVELS)}")
        engine.log_from(body.level)
        set_level(body.level)
        return json_answer({"level": body.level})

    path, reasons = "/api/cluster/log-level", {503: "the engine does not answer"}
    does = "log from a level on, until the server ends"
    return [Route("POST", path, Permission.MANAGE, does, change, LogLevelBody, LogLevel, reasons=reasons)]
