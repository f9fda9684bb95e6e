"""Serve /api/embed and /api/embeddings: texts to vectors."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flask import Response, request

from ollampi.api.ask import wanted_context
from ollampi.api.disconnect import DisconnectWatcher
from ollampi.api.durations import parse_keep_alive
from ollampi.api.engine_client import Done, Embedding, Engine, EngineError, Stream
from ollampi.api.errors import ApiError, bad_request, public, shown
from ollampi.api.fields import Fields
from ollampi.api.guard import json_body
from ollampi.api.loading import load_or_unload
from ollampi.api.model import Model
from ollampi.api.options import Options, parse_options
from ollampi.api.settings import Settings
from ollampi.api.store import Store
from ollampi.api.stream import encode, json_answer, text_answer, warned
from ollampi.api.text_tokenizer import Tokenizers
from ollampi.mpiruntime.request import EmbedRequest, Usage

MAX_INPUTS = 2048
TOO_LONG_TEXT = "the input length exceeds the context length"  # Ollama's words
_OVER_TEXT = (
    ": input {} has {} tokens and the model takes {} (max_seq_length in its sentence_bert_config.json); shorten it,"
    " or let /api/embed cut it with truncate"
)


@dataclass(frozen=True)
class _Ask:
    """What both routes read of a request; context is what the engine is asked for (None: its own choice)."""

    name: str
    model: Model
    options: Options
    context: int | None
    keep_alive_s: float | None


class Embeddings:
    """The two routes that make vectors."""

    def __init__(
        self, engine: Engine, store: Store, settings: Settings, tokenizers: Tokenizers, watcher: DisconnectWatcher
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._tokenizers = tokenizers
        self._watcher = watcher

    def embed(self) -> Response:
        """Answer POST /api/embed; raise ApiError, EngineError."""
        started_ns = time.perf_counter_ns()
        body = json_body()
        texts = _texts(body.values.get("input"))
        truncate, dimensions = body.flag("truncate", True), body.integer("dimensions", 0)
        ask = self._ask(body, body.text("model"))
        if not texts:
            self._load(ask)
            return warned(json_answer({"model": ask.name, "embeddings": []}), ask.options.ignored)
        prompts = self._prompts(ask, texts, truncate, too_long_status=400)
        vectors, usage = self._run(ask, prompts, lambda values: _unit(_cut(values, dimensions)), {"internal": 400})
        metrics = {
            "total_duration": time.perf_counter_ns() - started_ns,
            "load_duration": usage.load_ns,
            "prompt_eval_count": usage.prompt_tokens,
        }
        rest = "".join(f',"{key}":{value}' for key, value in metrics.items() if value)
        answer = text_answer(f'{{"model":{encode(ask.name)},"embeddings":[{",".join(vectors)}]{rest}}}')
        return warned(answer, ask.options.ignored)

    def embeddings(self) -> Response:
        """Answer POST /api/embeddings, the older route: one text, a vector as it is; raise ApiError, EngineError."""
        body = json_body()
        name, text = body.text("model"), body.text("prompt")
        if not name:
            raise bad_request("model is required")
        ask = self._ask(body, name)
        if not text:
            self._load(ask)
            return warned(json_answer({"embedding": []}), ask.options.ignored)
        prompts = self._prompts(ask, [text], truncate=False, too_long_status=500)
        (vector,), _ = self._run(ask, prompts, list, {"context": 500, "request": 500})
        return warned(text_answer(f'{{"embedding":{vector}}}'), ask.options.ignored)

    def _ask(self, body: Fields, name: str) -> _Ask:
        """Return what both routes read of a request; raise ApiError, ModelError."""
        keep_alive_s = parse_keep_alive(body.values.get("keep_alive"))
        given = body.object("options")
        model = self._store.get(name)
        if model is None:
            raise ApiError(
                404, f'model "{shown(name)}" not found, try pulling it first' if name else "model '' not found"
            )
        options = parse_options(given)
        return _Ask(
            name=name,
            model=model,
            options=options,
            context=wanted_context(options, model, self._settings),
            keep_alive_s=self._settings.default_keep_alive_s if keep_alive_s is None else keep_alive_s,
        )

    def _load(self, ask: _Ask) -> None:
        """Load the model of a request without text, its tokenizer too."""
        if ask.keep_alive_s != 0:
            self._tokenizers.get(ask.model)
        load_or_unload(self._engine, self._watcher, ask.model.ref, ask.context, ask.keep_alive_s, ask.options.timeout_s)

    def _prompts(self, ask: _Ask, texts: list[str], truncate: bool, too_long_status: int) -> list[array[int]]:
        """Return the token ids of the texts, cut to what the model takes where that is allowed; raise ApiError."""
        tokenizer = self._tokenizers.get(ask.model)
        context = ask.context or ask.model.context_length
        limit = min(context, ask.model.longest_input or context)
        prompts = []
        for place, text in enumerate(texts):
            ids, count = tokenizer.framed(text, limit)
            if count > limit and not truncate:
                more = _OVER_TEXT.format(place, count, limit) if limit < context else ""
                raise ApiError(too_long_status, TOO_LONG_TEXT + more)
            if not ids:
                raise bad_request(f"input {place} has no tokens; write some text")
            prompts.append(array("i", ids))
        return prompts

    def _run(
        self,
        ask: _Ask,
        prompts: list[array[int]],
        change: Callable[[array[float]], Sequence[float]],
        statuses: dict[str, int],
    ) -> tuple[list[str], Usage]:
        """Return the changed vectors as JSON in order of the prompts, and what they cost.

        `statuses` are those of engine errors that this route answers in its own way. Raise ApiError, EngineError.
        """
        _check_pooling(ask.model)
        timeout_s = ask.options.timeout_s
        order = EmbedRequest(ask.model.ref, prompts, ask.model.pooling, ask.context, ask.keep_alive_s, timeout_s)
        try:
            return self._follow(self._engine.embed(order), len(prompts), change)
        except EngineError as e:
            if e.code in statuses:
                raise ApiError(statuses[e.code], public(str(e))) from e
            raise

    def _follow(
        self, stream: Stream[Embedding | Done], count: int, change: Callable[[array[float]], Sequence[float]]
    ) -> tuple[list[str], Usage]:
        """Return what `_run` does; each vector is written as it comes, so that other requests go on meanwhile."""
        vectors: dict[int, str] = {}
        with self._watcher.following(request.environ.get("gunicorn.socket"), stream):
            for event in stream:
                if isinstance(event, Embedding):
                    vectors[event.place] = _json(change(event.values))
                elif event.reason == "cancel":
                    raise EngineError("cancelled", "request canceled")
                else:
                    return [vectors[place] for place in range(count)], event.usage
        raise EngineError("internal", "the engine ended a request without saying why")


def _texts(value: object) -> list[str]:
    """Return the texts of `input`; raise ApiError (400)."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise bad_request("invalid input type")
    if len(value) > MAX_INPUTS:
        raise bad_request(f"input holds {len(value)} texts; send at most {MAX_INPUTS} in one request")
    if not all(isinstance(item, str) for item in value):
        raise bad_request("invalid input type")
    return value


def _check_pooling(model: Model) -> None:
    """Raise ApiError where we cannot pool as the model wants it."""
    if model.pooling not in ("first", "last", "mean"):
        raise ApiError(
            500,
            f'model "{model.full_name}" makes embeddings by "{shown(model.pooling)}", which is not supported;'
            " use one with mean_tokens, cls_token or lasttoken in 1_Pooling/config.json",
        )


def _cut(values: array[float], dimensions: int) -> array[float]:
    """Return the first `dimensions` values; all of them where it is 0, negative or more than there are."""
    return values[:dimensions] if 0 < dimensions < len(values) else values


def _unit(values: array[float]) -> list[float]:
    """Return the vector with length 1; one of zeros stays as it is."""
    length = max(math.sqrt(math.fsum(value * value for value in values)), 1e-12)
    return [value / length for value in values]


def _json(values: Iterable[float]) -> str:
    """Return a JSON array of numbers; nine digits tell any two float32 apart."""
    return "[" + ",".join([f"{value:.9g}" for value in values]) + "]"
