"""Offer the routes that tell and change how much all processes of the server log."""

from __future__ import annotations

from flask import Response

from ollampi.api.access import Permission
from ollampi.api.engine_client import Engine
from ollampi.api.errors import bad_request, shown
from ollampi.api.routes import Route
from ollampi.api.stream import json_answer
from ollampi.api.wires.body import Body
from ollampi.api.wires.ollama_answers import Answer
from ollampi.mpiruntime.log_files import LEVELS, current_level, level_named, set_level


class LogLevelBody(Body):
    """POST /api/cluster/log-level: debug, info, warning or error."""

    level: str = ""


class LogLevel(Answer):
    """GET and POST /api/cluster/log-level."""

    level: str


def log_routes(engine: Engine) -> list[Route]:
    """Return the routes, each under its two paths."""

    def change(body: LogLevelBody) -> Response:
        """Answer POST /api/cluster/log-level; raise ApiError, EngineError."""
        level = level_named(body.level)
        if level is None:
            raise bad_request(f"level is {shown(body.level, 50)!r}; it must be one of {', '.join(LEVELS)}")
        engine.log_from(level)
        set_level(level)
        return json_answer({"level": level})

    def tell() -> Response:
        """Answer GET /api/cluster/log-level; ranks and HTTP process have the same level."""
        return json_answer({"level": current_level()})

    paths = ("/api/cluster/log-level", "/api/v1/cluster/log-level")
    does, reasons = "log from a level on, until the server ends", {503: "the engine does not answer"}
    return [
        *(Route("GET", path, Permission.READ, "from which level on is logged", tell, None, LogLevel) for path in paths),
        *(
            Route("POST", path, Permission.MANAGE, does, change, LogLevelBody, LogLevel, reasons=reasons)
            for path in paths
        ),
    ]
