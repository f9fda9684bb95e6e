"""Offer OpenAI's routes: chat completions, completions, embeddings, models, the last also as Anthropic has them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence

from flask import Response, request

from ollampi.api.access import Permission
from ollampi.api.completion import Completions
from ollampi.api.embedding import Embeddings, numbers
from ollampi.api.model import Model
from ollampi.api.routes import EVENTS, Route
from ollampi.api.run import Moved, Rendered, Run, started
from ollampi.api.store.catalog import Store
from ollampi.api.stream import encode, json_answer, text_answer
from ollampi.api.wires.anthropic_models import EitherModel, EitherModels, listed, page
from ollampi.api.wires.openai_answers import ChatCompletion, TextCompletion, TextVectors
from ollampi.api.wires.openai_bodies import AnswersBody, ChatCompletionsBody, CompletionsBody, VectorsBody
from ollampi.api.wires.openai_chat import chat_body, embed_body, generate_bodies
from ollampi.api.wires.openai_writer import CHAT, FORM, TEXT, Asked, Shape, Writer
from ollampi.api.wires.wire import ANTHROPIC, VERSION_HEADER, wire_of


class OpenAIRoutes:
    """The routes, over what serves Ollama's as well."""

    def __init__(self, store: Store, completions: Completions, embeddings: Embeddings) -> None:
        self._store = store
        self._completions = completions
        self._embeddings = embeddings

    def chat(self, body: ChatCompletionsBody) -> Response:
        """Answer POST /v1/chat/completions; raise ApiError, EngineError."""
        about = Asked(1, body.n, body.stream_options.include_usage)
        return self._answer([self._completions.chat(chat_body(body))], CHAT, body, about)

    def complete(self, body: CompletionsBody) -> Response:
        """Answer POST /v1/completions; raise ApiError, EngineError."""
        asked = generate_bodies(body)
        heads = [text.prompt if body.echo else "" for text in asked]
        about = Asked(len(asked), body.n, body.stream_options.include_usage, heads)
        return self._answer(map(self._completions.generate, asked), TEXT, body, about)

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
        """Answer GET /v1/models; raise ApiError (400)."""
        if _for_anthropic():
            return json_answer(page(self._store.models(), request.args))
        return json_answer({"object": "list", "data": [_entry(m.full_name, m) for m in self._store.models()]})

    def model(self, model: str) -> Response:
        """Answer GET /v1/models/MODEL; raise ApiError (404), ModelError."""
        found = self._store.find(model)
        return json_answer(listed(model, found) if _for_anthropic() else _entry(model, found))

    def _answer(
        self, made: Iterable[Run | Rendered | Moved], shape: Shape, body: AnswersBody, about: Asked
    ) -> Response:
        """Return `n` answers to each prompt, which `made` starts in their order; raise ApiError, EngineError."""
        runs = map(started, made)
        if about.choices == 1:
            run = next(runs)
            writer = Writer(run.ask.name, shape, about)
            return run.growing(writer.line, FORM) if body.stream else json_answer(writer.object([run.whole()]))
        several = self._completions.several(runs, body.n)
        writer = Writer(several.runs[0].ask.name, shape, about)
        return several.growing(writer.line, FORM) if body.stream else json_answer(writer.object(several.whole()))


def _for_anthropic() -> bool:
    """Return whether a client of Anthropic's asks for models."""
    return wire_of(request.path, request.headers.get(VERSION_HEADER)) is ANTHROPIC


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
    pages = {400: "limit, after_id and before_id, which Anthropic's clients may send, ask for no page"}
    return [
        Route("POST", chat, use, "answer a conversation", views.chat, ChatCompletionsBody, ChatCompletion, EVENTS),
        Route("POST", text, use, "continue a text", views.complete, CompletionsBody, TextCompletion, EVENTS),
        Route("POST", "/v1/embeddings", use, "vectors of texts", views.embed, VectorsBody, TextVectors),
        Route(
            "GET", "/v1/models", read, "the models that can be used", views.models, answer=EitherModels, reasons=pages
        ),
        Route("GET", "/v1/models/<path:model>", read, "a model", views.model, answer=EitherModel),
    ]
