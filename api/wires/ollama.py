"""Offer Ollama's own routes."""

from __future__ import annotations

import time

from flask import Response, g

from ollampi.api.access import Permission
from ollampi.api.completion import Completions
from ollampi.api.durations import now_text
from ollampi.api.embedding import Embeddings, numbers
from ollampi.api.engine_client import Engine
from ollampi.api.errors import bad_request
from ollampi.api.generation import Piece
from ollampi.api.known_tokenizers import Tokenizers
from ollampi.api.routes import NDJSON as NDJSON_TYPE
from ollampi.api.routes import Route
from ollampi.api.run import Moved, Rendered, Run
from ollampi.api.show import ps_entry, show_answer, tags_entry
from ollampi.api.store.catalog import Store
from ollampi.api.stream import NDJSON, encode, json_answer, text_answer, warned
from ollampi.api.wires.ollama_answers import (
    Chatted,
    Embedded,
    EmbeddedText,
    Generated,
    Running,
    Shown,
    Tags,
    Version,
)
from ollampi.api.wires.ollama_bodies import ChatBody, EmbedBody, EmbeddingsBody, GenerateBody, ShowBody
from ollampi.api.wires.ollama_writer import CHAT, GENERATE, Shape, Writer, head

_UNKNOWN = {404: ""}
_AWAY = {503: "", 504: ""}
_DAMAGED = {500: "the model cannot be used"}
_FAILS = {500: "an option has the wrong type, format or template is none, or the model cannot be loaded"}
OLLAMA_VERSION = "0.33.0"  # the API that we speak; clients switch features by it, so it is not our own version


class OllamaRoutes:
    """The routes that answer questions and those that compute."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        completions: Completions,
        embeddings: Embeddings,
        tokenizers: Tokenizers,
    ) -> None:
        self._engine = engine
        self._store = store
        self._completions = completions
        self._embeddings = embeddings
        self._tokenizers = tokenizers

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
        entries = [(entry, self._store.at(entry.path, entry.name)) for entry in loaded]
        entries.sort(key=lambda pair: float("inf") if pair[0].expires_at is None else pair[0].expires_at, reverse=True)
        return json_answer({"models": [ps_entry(entry, model, now) for entry, model in entries]})

    def show(self, body: ShowBody) -> Response:
        """Answer POST /api/show; raise ApiError, ModelError."""
        if not body.called:
            raise bad_request("model is required")
        model = self._store.find(body.called)
        return json_answer(show_answer(model, body.system, body.verbose, self._tokenizers.summary))

    def generate(self, body: GenerateBody) -> Response:
        """Answer POST /api/generate; raise ApiError, EngineError."""
        return _answer(self._completions.generate(body), GENERATE, body.stream, with_context=not body.raw)

    def chat(self, body: ChatBody) -> Response:
        """Answer POST /api/chat; raise ApiError, EngineError."""
        return _answer(self._completions.chat(body), CHAT, body.stream, with_context=False)

    def embed(self, body: EmbedBody) -> Response:
        """Answer POST /api/embed; raise ApiError, EngineError."""
        vectors = self._embeddings.embed(body, numbers)
        metrics = {
            "total_duration": time.perf_counter_ns() - g.started_ns if vectors.written else 0,
            "load_duration": vectors.usage.load_ns,
            "prompt_eval_count": vectors.usage.prompt_tokens,
        }
        rest = "".join(f',"{key}":{value}' for key, value in metrics.items() if value)
        text = f'{{"model":{encode(vectors.name)},"embeddings":[{",".join(vectors.written)}]{rest}}}'
        return warned(text_answer(text), vectors.ignored)

    def embeddings(self, body: EmbeddingsBody) -> Response:
        """Answer POST /api/embeddings, the older route: one text, a vector as it is; raise ApiError, EngineError."""
        vectors = self._embeddings.embeddings(body, numbers)
        return warned(text_answer(f'{{"embedding":{"".join(vectors.written) or "[]"}}}'), vectors.ignored)


def _answer(made: Run | Rendered | Moved, shape: Shape, stream: bool, with_context: bool) -> Response:
    """Return the answer to a request for text."""
    first = head(made.ask.name, now_text())
    if isinstance(made, Moved):
        return json_answer(first | shape.part(Piece()) | {"done": True, "done_reason": made.reason})
    if isinstance(made, Rendered):
        debug = {"rendered_template": made.prompt.text, "image_count": 0}
        return json_answer(first | shape.debug | {"done": False, "_debug_info": debug})
    writer = Writer(made.ask.name, shape, made.prompt.tokens if with_context else None, g.started_ns)
    if stream:
        return made.growing(writer.line, NDJSON)
    return warned(json_answer(writer.object(made.whole())), made.ask.options.ignored)


def ollama_routes(
    engine: Engine, store: Store, completions: Completions, embeddings: Embeddings, tokenizers: Tokenizers
) -> list[Route]:
    """Return Ollama's routes."""
    views = OllamaRoutes(engine, store, completions, embeddings, tokenizers)
    read, use = Permission.READ, Permission.USE
    return [
        Route("GET", "/", Permission.PUBLIC, "whether the server is there", views.alive, answer=""),
        Route("GET", "/api/version", Permission.PUBLIC, "the version of Ollama's API", views.version, answer=Version),
        Route("GET", "/api/tags", read, "the models that can be used", views.tags, answer=Tags),
        Route("GET", "/api/ps", read, "the models in memory", views.ps, answer=Running, reasons=_AWAY),
        Route("POST", "/api/show", read, "what a model is", views.show, ShowBody, Shown, reasons=_DAMAGED | _UNKNOWN),
        Route(
            "POST",
            "/api/generate",
            use,
            "continue a text",
            views.generate,
            GenerateBody,
            Generated,
            NDJSON_TYPE,
            _FAILS,
        ),
        Route("POST", "/api/chat", use, "answer a conversation", views.chat, ChatBody, Chatted, NDJSON_TYPE, _FAILS),
        Route("POST", "/api/embed", use, "vectors of texts", views.embed, EmbedBody, Embedded, reasons=_FAILS),
        Route(
            "POST",
            "/api/embeddings",
            use,
            "the vector of a text",
            views.embeddings,
            EmbeddingsBody,
            EmbeddedText,
            reasons=_FAILS,
        ),
    ]
