"""Offer OpenAI's routes: chat completions, completions, embeddings, models."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

from flask import Response

from ollampi.api.access import Permission
from ollampi.api.completion import Completions
from ollampi.api.embedding import Embeddings, numbers
from ollampi.api.model import Model
from ollampi.api.routes import EVENTS, Route
from ollampi.api.run import Moved, Rendered, Run, started
from ollampi.api.store.catalog import Store
from ollampi.api.stream import encode, json_answer, text_answer
from ollampi.api.wires.openai_answers import (
    ChatCompletion,
    ServedModel,
    ServedModels,
    TextCompletion,
    TextVectors,
)
from ollampi.api.wires.openai_bodies import AnswersBody, ChatCompletionsBody, CompletionsBody, VectorsBody
from ollampi.api.wires.openai_chat import chat_body, embed_body, generate_body
from ollampi.api.wires.openai_writer import CHAT, FORM, TEXT, Shape, Writer


class OpenAIRoutes:
    """The routes, over what serves Ollama's as well."""

    def __init__(self, store: Store, completions: Completions, embeddings: Embeddings) -> None:
        self._store = store
        self._completions = completions
        self._embeddings = embeddings

    def chat(self, body: ChatCompletionsBody) -> Response:
        """Answer POST /v1/chat/completions; raise ApiError, EngineError."""
        return self._answer(self._completions.chat(chat_body(body)), CHAT, body)

    def complete(self, body: CompletionsBody) -> Response:
        """Answer POST /v1/completions; raise ApiError, EngineError."""
        return self._answer(self._completions.generate(generate_body(body)), TEXT, body)

    def embed(self, body: VectorsBody) -> Response:
        """Answer POST /v1/embeddings; raise ApiError, EngineError."""
        vectors = self._embeddings.embed(embed_body(body), numbers if body.encoding_format == "float" else packed)
        data = ",".join(
            f'{{"object":"embedding","embedding":{text},"index":{place}}}' for place, text in enumerate(vectors.written)
        )
        usage = {"prompt_tokens": vectors.usage.prompt_tokens, "total_tokens": vectors.usage.prompt_tokens}
        rest = f'"model":{encode(vectors.name)},"usage":{encode(usage)}'
        return text_answer(f'{{"object":"list","data":[{data}],{rest}}}')

    def models(self) -> Response:
        """Answer GET /v1/models."""
        return json_answer({"object": "list", "data": [_entry(m.full_name, m) for m in self._store.models()]})

    def model(self, model: str) -> Response:
        """Answer GET /v1/models/MODEL; raise ApiError (404), ModelError."""
        return json_answer(_entry(model, self._store.find(model)))

    def _answer(self, made: Run | Rendered | Moved, shape: Shape, body: AnswersBody) -> Response:
        """Return one answer, or `n` to the same prompt; raise EngineError."""
        run = started(made)
        writer = Writer(run.ask.name, shape, body.n, body.stream_options.include_usage)
        if body.n == 1:
            return run.growing(writer.line, FORM) if body.stream else json_answer(writer.object([run.whole()]))
        several = self._completions.several(run, body.n)
        return several.growing(writer.line, FORM) if body.stream else json_answer(writer.object(several.whole()))


def packed(values: Sequence[float]) -> str:
    """Return a JSON string with the base64 of little-endian float32."""
    return f'"{base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()}"'


def _entry(name: str, model: Model) -> dict[str, object]:
    return {"id": name, "object": "model", "created": int(model.modified_at), "owned_by": model.name.namespace}


def openai_routes(store: Store, completions: Completions, embeddings: Embeddings) -> list[Route]:
    """Return OpenAI's routes."""
    views = OpenAIRoutes(store, completions, embeddings)
    read, use = Permission.READ, Permission.USE
    chat, text = "/v1/chat/completions", "/v1/completions"
    return [
        Route("POST", chat, use, "answer a conversation", views.chat, ChatCompletionsBody, ChatCompletion, EVENTS),
        Route("POST", text, use, "continue a text", views.complete, CompletionsBody, TextCompletion, EVENTS),
        Route("POST", "/v1/embeddings", use, "vectors of texts", views.embed, VectorsBody, TextVectors),
        Route("GET", "/v1/models", read, "the models that can be used", views.models, answer=ServedModels),
        Route("GET", "/v1/models/<path:model>", read, "a model", views.model, answer=ServedModel),
    ]
