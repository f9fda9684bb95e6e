"""Build the WSGI application from an engine, a model store and settings."""

from __future__ import annotations

import logging

from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from ollampi.api.engine_client import Engine
from ollampi.api.errors import INTERNAL_TEXT, RETRY_AFTER_S, answer_for, is_expected
from ollampi.api.guard import install_guard
from ollampi.api.metrics import install_metrics
from ollampi.api.ollama import ollama_blueprint
from ollampi.api.settings import Settings
from ollampi.api.store import Store
from ollampi.api.stream import json_answer

_PLAIN = {404: "404 page not found", 405: "405 method not allowed"}
_TEXTS = {
    400: "the request body is broken or ends too early",
    413: "the request body is too large",
    500: INTERNAL_TEXT,
}

_log = logging.getLogger(__name__)


def create_app(engine: Engine, store: Store, settings: Settings) -> Flask:
    """Return the application; it starts no thread and opens no connection before its first request."""
    app = Flask(__name__, static_folder=None)
    install_metrics(app, engine)  # first, so that it counts what the guard refuses too
    install_guard(app, settings)
    app.register_blueprint(ollama_blueprint(engine, store, settings))
    app.register_error_handler(HTTPException, _http_answer)
    app.register_error_handler(Exception, _answer)
    return app


def _http_answer(error: HTTPException) -> Response:
    """Return the answer to what Flask itself refuses: unknown paths, wrong methods, bodies that are too large."""
    status = error.code or 500
    if status in _PLAIN:
        response = Response(_PLAIN[status], status, content_type="text/plain; charset=utf-8")
        if allowed := getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response
    response = json_answer({"error": _TEXTS.get(status, error.name.lower())}, status)
    if status in (400, 413):
        response.headers["Connection"] = "close"  # what follows on it is the rest of the body
    return response


def _answer(error: Exception) -> Response:
    """Return the answer to an error of a route; what nobody expected is logged with its traceback."""
    if not is_expected(error):
        _log.error("a request failed", exc_info=error)
    status, text = answer_for(error)
    response = json_answer({"error": text}, status)
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response
