"""Offer Ollama's own routes."""

from __future__ import annotations

import time

from flask import Blueprint, Response

from ollampi.api.completion import Completions
from ollampi.api.disconnect import DisconnectWatcher
from ollampi.api.embedding import Embeddings
from ollampi.api.engine_client import Engine
from ollampi.api.errors import bad_request
from ollampi.api.guard import json_body
from ollampi.api.prompt import Prompts
from ollampi.api.settings import Settings
from ollampi.api.show import ps_entry, show_answer, tags_entry
from ollampi.api.store import Store
from ollampi.api.stream import json_answer

OLLAMA_VERSION = "0.33.0"  # the API that we speak; clients switch features by it, so it is not our own version


class OllamaRoutes:
    """The routes about models; those that make text are in Completions, the others in Embeddings."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine = engine
        self._store = store

    def alive(self) -> Response:
        """Answer GET /."""
        return Response("Ollama is running", content_type="text/plain; charset=utf-8")

    def version(self) -> Response:
        """Answer GET /api/version."""
        return json_answer({"version": OLLAMA_VERSION})

    def tags(self) -> Response:
        """Answer GET /api/tags, which works without the engine."""
        return json_answer({"models": [tags_entry(model) for model in self._store.models()]})

    def ps(self) -> Response:
        """Answer GET /api/ps: what is loaded, latest expiry first; raise EngineError."""
        now = time.time()
        loaded = self._engine.loaded()
        entries = [(entry, self._store.at(entry.path)) for entry in loaded]
        entries.sort(key=lambda pair: float("inf") if pair[0].expires_at is None else pair[0].expires_at, reverse=True)
        return json_answer({"models": [ps_entry(entry, model, now) for entry, model in entries]})

    def show(self) -> Response:
        """Answer POST /api/show; raise ApiError, ModelError."""
        body = json_body()
        name = body.text("model") or body.text("name")
        body.object("options")
        if not name:
            raise bad_request("model is required")
        return json_answer(show_answer(self._store.find(name), body.text("system"), body.flag("verbose", False)))


def ollama_blueprint(engine: Engine, store: Store, settings: Settings) -> Blueprint:
    """Return the blueprint with every route."""
    prompts, watcher = Prompts(), DisconnectWatcher()
    routes = OllamaRoutes(engine, store)
    completions = Completions(engine, store, settings, prompts, watcher)
    embeddings = Embeddings(engine, store, settings, prompts.tokenizers, watcher)
    blueprint = Blueprint("ollama", __name__)
    for method, path, view in (
        ("GET", "/", routes.alive),
        ("GET", "/api/version", routes.version),
        ("GET", "/api/tags", routes.tags),
        ("GET", "/api/ps", routes.ps),
        ("POST", "/api/show", routes.show),
        ("POST", "/api/generate", completions.generate),
        ("POST", "/api/chat", completions.chat),
        ("POST", "/api/embed", embeddings.embed),
        ("POST", "/api/embeddings", embeddings.embeddings),
    ):
        blueprint.add_url_rule(path, view.__name__, view, methods=[method], provide_automatic_options=False)
    return blueprint
