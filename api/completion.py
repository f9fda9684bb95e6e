"""Serve /api/generate and /api/chat: check a request, make its prompt, run it, and write the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from flask import Response, request

from ollampi.api.ask import Ask, parse_ask
from ollampi.api.delivery import Delivery
from ollampi.api.disconnect import DisconnectWatcher
from ollampi.api.durations import now_text
from ollampi.api.engine_client import Engine, EngineError
from ollampi.api.errors import bad_request
from ollampi.api.fields import MAX_OBJECTS, Fields
from ollampi.api.generation import Answer, Outcome, Piece, follow
from ollampi.api.guard import json_body
from ollampi.api.loading import load_or_unload
from ollampi.api.model import Model
from ollampi.api.prompt import Prompt, Prompts, fit
from ollampi.api.settings import Settings
from ollampi.api.shape import CHAT, GENERATE, Shape, Writer, head
from ollampi.api.store import Store
from ollampi.api.stream import NDJSON, growing_answer, json_answer, warned
from ollampi.api.thinking import CLOSE, OPEN, ThinkSplitter
from ollampi.api.turns import turn_of, with_call_ids
from ollampi.mpiruntime.request import GenerateRequest, Grammar

_LONGEST_ANSWER = 10  # contexts
_RAW_TEXT = "raw mode does not support template, system, or context"


class Completions:
    """The two routes that make text."""

    def __init__(
        self, engine: Engine, store: Store, settings: Settings, prompts: Prompts, watcher: DisconnectWatcher
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._prompts = prompts
        self._watcher = watcher

    def generate(self) -> Response:
        """Answer POST /api/generate; raise ApiError, EngineError."""
        started_ns = time.perf_counter_ns()
        body = json_body()
        ask = parse_ask(body, self._store, self._settings, self._model_name(body), "generate")
        text = body.text("prompt")
        if not text and not body.items("images"):
            return self._load_or_unload(ask, GENERATE)
        context = _generate_checks(body, ask.model)
        prompt = self._completion_prompt(body, ask, text, context)
        return self._run(ask, GENERATE, prompt, started_ns, with_context=not body.flag("raw", False))

    def chat(self) -> Response:
        """Answer POST /api/chat; raise ApiError, EngineError."""
        started_ns = time.perf_counter_ns()
        body = json_body()
        name = self._model_name(body)
        messages = body.objects("messages")
        if not name:
            raise bad_request("model is required")
        ask = parse_ask(body, self._store, self._settings, name, "chat")
        tools = [tool.values for tool in body.objects("tools")]
        if tools and "tools" not in ask.model.capabilities:
            raise bad_request(f"{ask.model.name.full} does not support tools")
        if sum(len(message.items("tool_calls")) for message in messages) > MAX_OBJECTS:
            raise bad_request(f"the messages hold more than {MAX_OBJECTS} tool calls; leave out the oldest")
        for message in messages:
            _no_images(message, ask.model)
        turns = [turn_of(message) for message in messages]
        with_call_ids(turns)
        if not turns:
            return self._load_or_unload(ask, CHAT)
        prompt = self._prompts.chat(ask.model, turns, tools, ask.window, **ask.template_names)
        return self._run(ask, CHAT, prompt, started_ns, with_context=False)

    def _model_name(self, body: Fields) -> str:
        return body.text("model") or body.text("name")

    def _completion_prompt(self, body: Fields, ask: Ask, text: str, context: list[int]) -> Prompt:
        """Return the prompt of /api/generate, behind the tokens of an earlier answer where those were sent."""
        if body.flag("raw", False):
            return fit(self._prompts.raw(ask.model, text), ask.window)
        system, template = body.text("system"), body.text("template")
        prompt = self._prompts.generate(ask.model, system, text, template, **ask.template_names)
        if context:
            tokenizer = self._prompts.tokenizers.get(ask.model)
            if not all(0 <= token < tokenizer.vocabulary_size for token in context):
                raise bad_request(f"context must hold token ids from 0 to {tokenizer.vocabulary_size - 1}")
            prompt = Prompt(tokenizer.decode(context) + prompt.text, tokenizer.continued(context, prompt.tokens))
        return fit(prompt, ask.window)

    def _load_or_unload(self, ask: Ask, shape: Shape) -> Response:
        """Answer a request without text: keep_alive 0 unloads the model, anything else loads it, its tokenizer too."""
        if ask.keep_alive_s != 0:
            self._prompts.tokenizers.get(ask.model)
        reason = load_or_unload(
            self._engine, self._watcher, ask.model.ref, ask.context, ask.keep_alive_s, ask.options.timeout_s
        )
        return json_answer(head(ask.name, now_text()) | shape.part(Piece()) | {"done": True, "done_reason": reason})

    def _run(self, ask: Ask, shape: Shape, prompt: Prompt, started_ns: int, with_context: bool) -> Response:
        """Generate the answer to a prompt."""
        if ask.debug_render_only:
            debug = {"rendered_template": prompt.text, "image_count": 0}
            return json_answer(head(ask.name, now_text()) | shape.debug | {"done": False, "_debug_info": debug})
        if not prompt.tokens:
            raise bad_request("the prompt has no tokens; write some text")
        tokenizer = self._prompts.tokenizers.get(ask.model)
        answer = Answer(tokenizer, prompt.tokens, ask.options.stop, _splitter(ask, prompt))
        stream = self._engine.generate(_engine_request(ask, prompt))
        unwatch = self._watcher.watch(request.environ.get("gunicorn.socket"), stream.cancel)

        def close() -> None:
            """End the request, whatever state it is in."""
            unwatch()
            stream.close()

        writer = Writer(ask.name, shape, prompt.tokens if with_context else None, started_ns)
        if ask.stream:
            lines = Delivery(stream, answer, writer.line, request.environ.get("ollampi.pipe"))
            return warned(growing_answer(iter(lines), NDJSON, close), ask.options.ignored)
        try:
            return warned(json_answer(writer.object(_joined(follow(stream, answer)))), ask.options.ignored)
        finally:
            close()


def _generate_checks(body: Fields, model: Model) -> list[int]:
    """Return the `context` of a request whose other fields do not contradict each other; raise ApiError (400)."""
    context = body.integers("context", (_LONGEST_ANSWER + 1) * model.context_length)  # the longest that we ever sent
    if body.flag("raw", False) and (body.text("template") or body.text("system") or context):
        raise bad_request(_RAW_TEXT)
    if body.text("suffix"):
        raise bad_request(f"{model.name.full} does not support insert")
    _no_images(body, model)
    return context


def _no_images(body: Fields, model: Model) -> None:
    if body.items("images"):
        raise bad_request(f"{model.name.full} does not support vision")


def _engine_request(ask: Ask, prompt: Prompt) -> GenerateRequest:
    """Return what the engine is asked; an answer ends after ten contexts at the latest."""
    longest = _LONGEST_ANSWER * ask.window.context
    keep = ask.window.keep_tokens if ask.window.keep_tokens >= 0 else len(prompt.tokens)
    return GenerateRequest(
        model=ask.model.ref,
        prompt=prompt.tokens,
        sampling=ask.options.sampling,
        stop_tokens=ask.model.texts.eos_token_ids,
        max_tokens=min(ask.options.max_tokens or longest, longest),
        context=ask.context,
        keep_tokens=min(keep, ask.window.context - 2),  # a shift must free something
        shift=ask.window.shift,
        keep_alive_s=ask.keep_alive_s,
        max_drafts=ask.options.max_drafts,
        timeout_s=ask.options.timeout_s,
        grammar=_grammar(ask, prompt),
    )


def _grammar(ask: Ask, prompt: Prompt) -> Grammar | None:
    """Return what the answer must be; a model that thinks reasons freely before it."""
    if ask.grammar is None or not ask.think:
        return ask.grammar
    return replace(ask.grammar, reasoning=(OPEN, CLOSE, _reasons_already(prompt)))


def _reasons_already(prompt: Prompt) -> bool:
    return prompt.text.rstrip().endswith(OPEN)


def _splitter(ask: Ask, prompt: Prompt) -> ThinkSplitter | None:
    return ThinkSplitter(_reasons_already(prompt)) if ask.think else None


def _joined(pieces: Iterator[Piece | Outcome]) -> Outcome:
    """Return the end of an answer with all of its text."""
    parts: list[Piece] = []
    for piece in pieces:
        parts.append(piece.last if isinstance(piece, Outcome) else piece)
        if isinstance(piece, Outcome):
            text, thinking = "".join(p.text for p in parts), "".join(p.thinking for p in parts)
            logprobs = [entry for p in parts for entry in p.logprobs]
            return Outcome(Piece(text, thinking, logprobs), piece.reason, piece.usage, piece.tokens)
    raise EngineError("internal", "the engine ended an answer without saying why")
