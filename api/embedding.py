"""Make vectors of texts, from requests as Ollama writes them; other wires translate theirs."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flask import request

from ollampi.api.ask import wanted_context
from ollampi.api.disconnect import DisconnectWatcher
from ollampi.api.durations import parse_keep_alive
from ollampi.api.engine_client import Done, Embedding, Engine, EngineError, Stream
from ollampi.api.errors import ApiError, bad_request, public, shown
from ollampi.api.known_tokenizers import Tokenizers
from ollampi.api.loading import load_or_unload
from ollampi.api.model import Model
from ollampi.api.options import Options, parse_options
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from ollampi.api.wires.ollama_bodies import EmbedBody, EmbeddingsBody, KeptBody
from ollampi.mpiruntime.request import EmbedRequest, Usage

Write = Callable[[Sequence[float]], str]

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


@dataclass(frozen=True)
class Vectors:
    """The vectors of a request's texts, each written already, and what they cost."""

    name: str
    written: list[str]
    usage: Usage
    ignored: list[str]


class Embeddings:
    """What makes vectors; `write` makes the text of one."""

    def __init__(
        self, engine: Engine, store: Store, settings: Settings, tokenizers: Tokenizers, watcher: DisconnectWatcher
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._tokenizers = tokenizers
        self._watcher = watcher

    def embed(self, body: EmbedBody, write: Write) -> Vectors:
        """Return a vector of length 1 for each text of `input`; raise ApiError, EngineError."""
        texts = _texts(body.input)
        ask = self._ask(body)
        if not texts:
            self._load(ask)
            return Vectors(ask.name, [], Usage(), ask.options.ignored)
        prompts = self._prompts(ask, texts, body.truncate, too_long_status=400)
        return self._run(ask, prompts, lambda values: write(_unit(_cut(values, body.dimensions))), {"internal": 400})

    def embeddings(self, body: EmbeddingsBody, write: Write) -> Vectors:
        """Return the vector of one text as it is, or none of an empty one; raise ApiError, EngineError."""
        if not body.called:
            raise bad_request("model is required")
        ask = self._ask(body)
        if not body.prompt:
            self._load(ask)
            return Vectors(ask.name, [], Usage(), ask.options.ignored)
        prompts = self._prompts(ask, [body.prompt], truncate=False, too_long_status=500)
        return self._run(ask, prompts, write, {"context": 500, "request": 500})

    def _ask(self, body: KeptBody) -> _Ask:
        """Return what both routes read of a request; raise ApiError, ModelError."""
        keep_alive_s = parse_keep_alive(body.keep_alive)
        name = body.called
        model = self._store.get(name)
        if model is None:
            raise ApiError(
                404, f'model "{shown(name)}" not found, try pulling it first' if name else "model '' not found"
            )
        given = {name: value for name, value in body.options.items() if value is not None}
        options = parse_options({**model.parameters, **given})
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

    def _run(self, ask: _Ask, prompts: list[array[int]], write: Write, statuses: dict[str, int]) -> Vectors:
        """Return the vectors in order of the prompts; each is written as it comes, so that other requests go on.

        `statuses` are those of engine errors that this route answers in its own way. Raise ApiError, EngineError.
        """
        _check_pooling(ask.model)
        timeout_s = ask.options.timeout_s
        order = EmbedRequest(ask.model.ref, prompts, ask.model.pooling, ask.context, ask.keep_alive_s, timeout_s)
        try:
            written, usage = self._follow(self._engine.embed(order), len(prompts), write)
        except EngineError as e:
            if e.code in statuses:
                raise ApiError(statuses[e.code], public(str(e))) from e
            raise
        return Vectors(ask.name, written, usage, ask.options.ignored)

    def _follow(self, stream: Stream[Embedding | Done], count: int, write: Write) -> tuple[list[str], Usage]:
        """Return the vectors and what they cost."""
        vectors: dict[int, str] = {}
        with self._watcher.following(request.environ.get("gunicorn.socket"), stream):
            for event in stream:
                if isinstance(event, Embedding):
                    vectors[event.place] = write(event.values)
                elif event.reason == "cancel":
                    raise EngineError("cancelled", "request canceled")
                else:
                    return [vectors[place] for place in range(count)], event.usage
        raise EngineError("internal", "the engine ended a request without saying why")


def numbers(values: Iterable[float]) -> str:
    """Return a JSON array of numbers; nine digits tell any two float32 apart."""
    return "[" + ",".join([f"{value:.9g}" for value in values]) + "]"


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


def _cut(values: Sequence[float], dimensions: int) -> Sequence[float]:
    """Return the first `dimensions` values; all of them where it is 0, negative or more than there are."""
    return values[:dimensions] if 0 < dimensions < len(values) else values


def _unit(values: Sequence[float]) -> list[float]:
    """Return the vector with length 1; one of zeros stays as it is."""
    length = max(math.sqrt(math.fsum(value * value for value in values)), 1e-12)
    return [value / length for value in values]
