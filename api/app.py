"""Build the WSGI application from an engine, a model store and settings."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from ollampi.api.completion import Completions
from ollampi.api.disconnect import DisconnectWatcher
from ollampi.api.embedding import Embeddings
from ollampi.api.engine_client import Engine
from ollampi.api.errors import INTERNAL_TEXT, RETRY_AFTER_S, answer_for, comes_back, is_expected
from ollampi.api.guard import install_guard
from ollampi.api.logs import install_access_log
from ollampi.api.metrics import install_metrics, metrics_routes
from ollampi.api.openapi import openapi_routes
from ollampi.api.probes import probe_routes
from ollampi.api.prompt import Prompts
from ollampi.api.routes import install_routes
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from ollampi.api.store.local import LocalStore
from ollampi.api.stream import json_answer
from ollampi.api.text_process import TextProcess
from ollampi.api.wires.anthropic import anthropic_routes
from ollampi.api.wires.cluster import cluster_routes
from ollampi.api.wires.log_level import log_routes
from ollampi.api.wires.ollama import ollama_routes
from ollampi.api.wires.ollama_cloud import cloud_routes
from ollampi.api.wires.ollama_manage import manage_routes
from ollampi.api.wires.openai import openai_routes
from ollampi.api.wires.responses import responses_routes
from ollampi.api.wires.wire import VERSION_HEADER, wire_of

_PLAIN = {404: "404 page not found", 405: "405 method not allowed"}
_TEXTS = {
    400: "the request body is broken or ends too early",
    413: "the request body is too large",
    500: INTERNAL_TEXT,
}

_NO_STORE = LocalStore(Path(os.devnull), is_read_only=True)  # for a user without a home

_log = logging.getLogger(__name__)


def create_app(engine: Engine, store: Store, settings: Settings, texts: TextProcess | None = None) -> Flask:
    """Return the application; it starts no thread and opens no connection before its first request.

    texts: what makes the tokenizers of models; without it they are made by a process that the first of them starts.
    """
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # a digest with `..` is refused, not redirected
    counts = install_metrics(app)  # first, so that it counts what the guard refuses too
    install_guard(app, settings)
    install_access_log(app)
    prompts, watcher = Prompts(texts), DisconnectWatcher()
    completions = Completions(engine, store, settings, prompts, watcher)
    embeddings = Embeddings(engine, store, settings, prompts.tokenizers, watcher)
    install_routes(
        app,
        [
            *ollama_routes(engine, store, completions, embeddings, prompts.tokenizers),
            *manage_routes(store.local or _NO_STORE, store, settings, watcher),
            *cloud_routes(store),
            *cluster_routes(engine, store, watcher),
            *openapi_routes(app, bool(settings.keys.roles)),
            *openai_routes(store, completions, embeddings),
            *responses_routes(completions),
            *anthropic_routes(store, completions),
            *metrics_routes(engine, counts),
            *probe_routes(engine, settings.keys),
            *log_routes(engine),
        ],
    )
    app.register_error_handler(HTTPException, _http_answer)
    app.register_error_handler(Exception, _answer)
    return app


def _http_answer(error: HTTPException) -> Response:
    """Return the answer to what Flask itself refuses: unknown paths, wrong methods, bodies that are too large."""
    status = error.code or 500
    if status in _PLAIN and not request.path.startswith("/v1/"):
        response = Response(_PLAIN[status], status, content_type="text/plain; charset=utf-8")
    else:
        response = _failure(status, _TEXTS.get(status) or _PLAIN.get(status) or error.name.lower())
    if allowed := getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    if status in (400, 413):
        response.headers["Connection"] = "close"  # what follows on it is the rest of the body
    return response


def _answer(error: Exception) -> Response:
    """Return the answer to an error of a route; what nobody expected is logged with its traceback."""
    if not is_expected(error):
        _log.error("a request failed", exc_info=error)
    response = _failure(*answer_for(error))
    if response.status_code == 503 and comes_back(error):
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _failure(status: int, text: str) -> Response:
    """Return an error as the wire of the request writes it."""
    wire = wire_of(request.path, request.headers.get(VERSION_HEADER))
    return json_answer(wire.error(status, text, g.get("request_id", "")), status)
