"""Answer GET /livez and /readyz: whether the server is alive, and whether it can serve now."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from flask import Response, request

from ollampi.api.access import Keys, Permission, sent_key
from ollampi.api.engine_client import Engine, EngineError
from ollampi.api.errors import RETRY_AFTER_S, ApiError
from ollampi.api.routes import Route
from ollampi.api.stream import json_answer
from ollampi.mpiruntime.request import Readiness

_KEPT_S = 0.1  # an answer of rank 0, however many ask
_SILENT = Readiness(False, [(0, "does not answer the HTTP process")])


class Probes:
    """The two routes; many threads ask rank 0 once."""

    def __init__(self, engine: Engine, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._keys = keys
        self._clock = clock
        self._lock = threading.Lock()
        self._last: tuple[float, Readiness] | None = None

    def live(self) -> Response:
        """Answer GET /livez: 200 where this process and the engine's loop are alive, whatever other ranks do.

        Also where there is no loop now, but one is being started.
        """
        is_live = self._ask().live
        return _answer({"status": "alive" if is_live else "dead"}, is_live)

    def ready(self) -> Response:
        """Answer GET /readyz: 200 where every rank worked lately, else 503 with what is wrong for who may read it."""
        found = self._ask()
        told: dict[str, Any] = {"status": "unready" if found.reasons else "ready"}
        if found.reasons and self._may_read():
            told["reasons"] = [{"rank": rank, "reason": reason} for rank, reason in found.reasons]
        return _answer(told, not found.reasons)

    def _ask(self) -> Readiness:
        """Return what rank 0 says, or said a moment ago."""
        with self._lock:
            if self._last is None or self._clock() - self._last[0] >= _KEPT_S:
                try:
                    found = self._engine.readiness()
                except EngineError as e:
                    found = Readiness(True, [(0, str(e))]) if e.code == "restarting" else _SILENT
                self._last = self._clock(), found
            return self._last[1]

    def _may_read(self) -> bool:
        """Return whether whoever asks may know what is wrong: without keys everybody may."""
        headers = request.headers
        try:
            self._keys.check(Permission.READ, sent_key(headers.get("Authorization", ""), headers.get("X-Api-Key", "")))
        except ApiError:
            return False
        return True


def probe_routes(engine: Engine, keys: Keys) -> list[Route]:
    """Return the routes /livez and /readyz, which need no key."""
    probes = Probes(engine, keys)
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    texts = "whether the server is alive", "whether every rank is there and worked lately"
    return [
        Route("GET", path, Permission.PUBLIC, text, view, answer=status, reasons={503: "it is not"})
        for path, text, view in zip(("/livez", "/readyz"), texts, (probes.live, probes.ready), strict=True)
    ]


def _answer(told: dict[str, Any], is_well: bool) -> Response:
    """Return the answer with its status; nobody keeps it."""
    response = json_answer(told, 200 if is_well else 503)
    response.headers["Cache-Control"] = "no-store"
    if not is_well:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response
