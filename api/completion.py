"""Start answers: check a request for text, make its prompt, hand it to the engine; every wire comes through here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from flask import request

from ollampi.api.ask import Ask, parse_ask
from ollampi.api.disconnect import DisconnectWatcher
from ollampi.api.engine_client import Engine
from ollampi.api.errors import bad_request
from ollampi.api.generation import Answer
from ollampi.api.loading import load_or_unload
from ollampi.api.model import Model
from ollampi.api.prompt import Prompt, Prompts, fit
from ollampi.api.run import Moved, Rendered, Run
from ollampi.api.settings import Settings
from ollampi.api.several import Several
from ollampi.api.store.catalog import Store
from ollampi.api.thinking import CLOSE, OPEN, ThinkSplitter
from ollampi.api.tools.dialects import dialect_of
from ollampi.api.tools.use import ToolUse, tool_use
from ollampi.api.turns import turn_of, with_call_ids
from ollampi.api.wires.body import MAX_OBJECTS
from ollampi.api.wires.ollama_bodies import ChatBody, GenerateBody
from ollampi.mpiruntime.request import GenerateRequest, Grammar

_LONGEST_ANSWER = 10  # contexts
_RAW_TEXT = "raw mode does not support template, system, or context"


class Completions:
    """What makes text, from requests as Ollama writes them; other wires translate theirs."""

    def __init__(
        self, engine: Engine, store: Store, settings: Settings, prompts: Prompts, watcher: DisconnectWatcher
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._prompts = prompts
        self._watcher = watcher

    def generate(self, body: GenerateBody) -> Run | Rendered | Moved:
        """Continue a text; raise ApiError, EngineError."""
        ask = parse_ask(body, self._store, self._settings, "generate")
        context = _generate_checks(body, ask.model)
        if not body.prompt:
            return self._move(ask)
        return self._start(body.debug_render_only, ask, self._completion_prompt(body, ask, context))

    def chat(self, body: ChatBody) -> Run | Rendered | Moved:
        """Answer a conversation; raise ApiError, EngineError."""
        ask, turns, use = self._conversation(body)
        if not turns:
            return self._move(ask)
        return self._start(body.debug_render_only, ask, self._chat_prompt(ask, turns, use), use)

    def count(self, body: ChatBody) -> int:
        """Return how many tokens the prompt of a conversation has, whether or not it fits; raise ApiError."""
        ask, turns, use = self._conversation(body)
        unbounded = replace(ask, window=replace(ask.window, context=sys.maxsize))
        return len(self._chat_prompt(unbounded, turns, use).tokens)

    def several(self, starts: Iterable[Run], count: int) -> Several:
        """Return `count` answers to each prompt, the first as `starts` begins it, then with the next seeds.

        A client that leaves ends them all. Raise ApiError, EngineError.
        """
        runs: list[Run] = []
        try:
            for first in starts:
                runs.append(first)
                for place in range(1, count):
                    ask = replace(first.ask, options=first.ask.options.with_next_seed(place))
                    runs.append(self._run(ask, first.prompt, first.use))
        except BaseException:
            for run in runs:
                run.close()
            raise
        several = Several(tuple(runs))
        return replace(several, unwatch=self._watch(several.cancel))  # in the place of the one watch that a client has

    def _chat_prompt(self, ask: Ask, turns: list[dict[str, Any]], use: ToolUse | None) -> Prompt:
        """Return the prompt of a conversation."""
        tools = use.values if use else []
        return self._prompts.chat(ask.model, turns, tools, ask.window, ask.model.template, **ask.template_names)

    def _conversation(self, body: ChatBody) -> tuple[Ask, list[dict[str, Any]], ToolUse | None]:
        """Return a checked conversation: its turns, and the tools that its answer may call; raise ApiError."""
        if not body.called:
            raise bad_request("model is required")
        ask = parse_ask(body, self._store, self._settings, "chat")
        use = _tool_use(body, ask)
        if sum(len(message.tool_calls) for message in body.messages) > MAX_OBJECTS:
            raise bad_request(f"the messages hold more than {MAX_OBJECTS} tool calls; leave out the oldest")
        for message in body.messages:
            _no_images(message.images, ask.model)
        turns = _with_stored(ask.model, [turn_of(message) for message in body.messages])
        with_call_ids(turns)
        return ask, turns, use

    def _completion_prompt(self, body: GenerateBody, ask: Ask, context: list[int]) -> Prompt:
        """Return the prompt of /api/generate, behind the tokens of an earlier answer where those were sent."""
        if body.raw:
            return fit(self._prompts.raw(ask.model, body.prompt), ask.window)
        prompt = self._prompts.generate(
            ask.model,
            body.system or ask.model.system,
            body.prompt,
            body.template,
            body.suffix,
            ask.window,
            ask.model.template,
            [] if context else ask.model.messages,
            **ask.template_names,
        )
        if context:
            tokenizer = self._prompts.tokenizers.get(ask.model)
            if not all(0 <= token < tokenizer.vocabulary_size for token in context):
                raise bad_request(f"context must hold token ids from 0 to {tokenizer.vocabulary_size - 1}")
            tokens = tokenizer.continued(context, prompt.tokens)
            prompt = replace(prompt, text=tokenizer.decode(context) + prompt.text, tokens=tokens)
        return fit(prompt, ask.window)

    def _move(self, ask: Ask) -> Moved:
        """Serve a request without text: keep_alive 0 unloads the model, anything else loads it, its tokenizer too."""
        if ask.keep_alive_s != 0:
            self._prompts.tokenizers.get(ask.model)
        reason = load_or_unload(
            self._engine, self._watcher, ask.model.ref, ask.context, ask.keep_alive_s, ask.options.timeout_s
        )
        return Moved(ask, reason)

    def _start(self, render_only: bool, ask: Ask, prompt: Prompt, use: ToolUse | None = None) -> Run | Rendered:
        """Start the answer to a prompt, unless only that was wanted."""
        return Rendered(ask, prompt) if render_only else self._run(ask, prompt, use)

    def _run(self, ask: Ask, prompt: Prompt, use: ToolUse | None) -> Run:
        """Start the answer to a prompt, which may call tools; raise ApiError, EngineError."""
        if not prompt.tokens:
            raise bad_request("the prompt has no tokens; write some text")
        tokenizer = self._prompts.tokenizers.get(ask.model)
        forced = use.grammar(tokenizer.special_id) if use is not None else None
        if forced is not None and ask.grammar is not None:
            raise bad_request("tool_choice asks for a call and format for something else; leave one of them out")
        answer = Answer(
            tokenizer,
            prompt.tokens,
            ask.options.stop,
            _splitter(ask, prompt),
            use.splitter() if use is not None else None,
            one_call=use is not None and not use.parallel,
            only_calls=forced is not None,
        )
        stream = self._engine.generate(_engine_request(ask, prompt, forced or ask.grammar))
        return Run(ask, prompt, stream, answer, self._watch(stream.cancel), use)

    def _watch(self, on_gone: Callable[[], None]) -> Callable[[], None]:
        """Call `on_gone` where the client of the current request leaves; return what ends the watch."""
        return self._watcher.watch(request.environ.get("gunicorn.socket"), on_gone)


def _generate_checks(body: GenerateBody, model: Model) -> list[int]:
    """Return the `context` of a request whose other fields do not contradict each other; raise ApiError (400)."""
    longest = (_LONGEST_ANSWER + 1) * model.context_length  # the longest that we ever sent
    if len(body.context) > longest:
        raise bad_request(f'"context" holds {len(body.context)} entries; leave out all but {longest}')
    if not all(type(token) is int for token in body.context):
        raise bad_request('json: field "context" must be of type array of integers')
    if body.raw and (body.template or body.system or body.context):
        raise bad_request(_RAW_TEXT)
    if body.suffix and "insert" not in model.capabilities:
        raise bad_request(f"{model.name.full} does not support insert")
    _no_images(body.images, model)
    return body.context


def _no_images(images: list[Any], model: Model) -> None:
    if images:
        raise bad_request(f"{model.name.full} does not support vision")


def _with_stored(model: Model, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation behind the messages that its model brings, and its system text where none is said."""
    if not turns:
        return []
    said = turns[0]["role"] == "system" or not model.system
    system = [] if said else [{"role": "system", "content": model.system}]
    return [*system, *(dict(message) for message in model.messages), *turns]


def _tool_use(body: ChatBody, ask: Ask) -> ToolUse | None:
    """Return the tools that the answer may call; raise ApiError (400)."""
    template = ask.model.template or ask.model.texts.template_for(True) or ""
    dialect = dialect_of(template) if "tools" in ask.model.capabilities else None
    return tool_use(body.tools, body.tool_choice, body.parallel_tool_calls, dialect, ask.model.name.full)


def _engine_request(ask: Ask, prompt: Prompt, grammar: Grammar | None) -> GenerateRequest:
    """Return what the engine is asked; an answer ends after ten contexts at the latest."""
    longest = _LONGEST_ANSWER * ask.window.context
    keep = ask.window.keep_tokens if ask.window.keep_tokens >= 0 else len(prompt.tokens)
    return GenerateRequest(
        model=ask.model.ref,
        prompt=prompt.tokens,
        sampling=ask.options.sampling,
        stop_tokens=[*ask.model.texts.eos_token_ids, *prompt.ends],
        max_tokens=min(ask.options.max_tokens or longest, longest),
        context=ask.context,
        keep_tokens=min(keep, ask.window.context - 2),  # a shift must free something
        shift=ask.window.shift,
        keep_alive_s=ask.keep_alive_s,
        max_drafts=ask.options.max_drafts,
        timeout_s=ask.options.timeout_s,
        grammar=_behind_reasoning(grammar, ask, prompt),
    )


def _behind_reasoning(grammar: Grammar | None, ask: Ask, prompt: Prompt) -> Grammar | None:
    """Return what the answer must be; a model that thinks reasons freely before it."""
    if grammar is None or not ask.think:
        return grammar
    return replace(grammar, reasoning=(OPEN, CLOSE, _reasons_already(prompt)))


def _reasons_already(prompt: Prompt) -> bool:
    return prompt.text.rstrip().endswith(OPEN)


def _splitter(ask: Ask, prompt: Prompt) -> ThinkSplitter | None:
    return ThinkSplitter(_reasons_already(prompt)) if ask.think else None
