"""Log lines that begin with the id of the request that they are about, and a line for each request."""

from __future__ import annotations

import logging
import time

from flask import Flask, Response, g, has_app_context, request

from ollampi.mpiruntime.log_files import API, LogSettings, in_files, open_logs

_log = logging.getLogger(__name__)
_GUNICORNS = "gunicorn.error"


class _RequestIds(logging.Filter):
    """Gives each record `request`: the id of the request of this thread and a blank, or nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: no record is held back."""
        number = g.get("request_id", "") if has_app_context() else ""
        record.request = f"{number} " if number else ""
        return True


def log_with_ids(settings: LogSettings) -> None:
    """Send what this process logs where the settings say, with the time, the level and the request's id."""
    open_logs(settings, API, _RequestIds())


def adopt_gunicorn() -> None:
    """Have gunicorn, once it has set up its own log, write to the file of this process where there is one."""
    if in_files():
        logger = logging.getLogger(_GUNICORNS)
        logger.handlers.clear()
        logger.propagate = True


def install_access_log(app: Flask) -> None:
    """Make `app` log each request at the level info: method, path, status and the time until its answer begins."""

    @app.after_request
    def tell(response: Response) -> Response:
        """Return the response."""
        if _log.isEnabledFor(logging.INFO):
            passed_ms = (time.perf_counter_ns() - g.started_ns) / 1e6 if "started_ns" in g else 0.0
            path = request.path.encode("unicode_escape").decode()
            _log.info("%s %s %d, %.1f ms", request.method, path, response.status_code, passed_ms)
        return response
