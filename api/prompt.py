"""Build the prompt of a request: messages through the model's template to token ids that fit the context."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ollampi.api.chat_template import ChatTemplates
from ollampi.api.errors import ApiError, bad_request
from ollampi.api.go_template import GoTemplate, Thinking
from ollampi.api.infill import Infill
from ollampi.api.known_tokenizers import Tokenizers
from ollampi.api.model import Model
from ollampi.api.text_encoder import Piece
from ollampi.api.text_process import TextProcess
from ollampi.api.text_tokenizer import TextTokenizer
from ollampi.mpiruntime.errors import ModelError, RequestError

MAX_HIDDEN = 10_000
KEPT_TEMPLATES = 16
INFILL_SHARE = 8  # of the context, left for what is filled in: a shift would drop the suffix
_TOOLS_OF_MESSAGE = re.compile(r"message(?:\.tools|\[['\"]tools['\"]\])")
TOO_LONG_TEXT = "the prompt is longer than the context length currently available"

Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt and its token ids; ends: tokens that end its answer besides the model's own."""

    text: str
    tokens: list[int]
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class Window:
    """How a prompt must fit: context in tokens, and what may be dropped where it does not."""

    context: int
    keep_tokens: int
    truncate: bool
    shift: bool


class Guarded:
    """Special tokens in a user's text, replaced by marks while a template is rendered.

    Only text that holds a special token is touched, so ordinary text is tokenised in one piece with its template.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._marks: list[str] = []
        self._nonce = secrets.token_hex(8)
        texts = tokenizer.special_texts
        self._special = re.compile("|".join(map(re.escape, texts))) if texts else None

    def hide(self, value: Any) -> Any:
        """Return a string, or a JSON value with all its strings, with special tokens replaced by marks."""
        if isinstance(value, str):
            text = self._tokenizer.cut(value)
            if self._special is None:
                return text
            if self._tokenizer.becomes_special(text):
                return self._mark(text)
            return self._special.sub(lambda found: self._mark(found[0]), text)
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return value

    def prompt(self, rendered: str) -> Prompt:
        """Return the prompt for text that was rendered from hidden values; raise ApiError, ModelError."""
        pieces = re.split(rf"\ue000{self._nonce}:(\d+)\ue001", rendered)
        if len(pieces) > 2 * MAX_HIDDEN + 1:  # a template may repeat them
            raise _too_many()
        pieces[1::2] = [self._marks[int(number)] for number in pieces[1::2]]
        tail = sum(map(len, pieces)) - self._tokenizer.half_chars
        read: list[Piece] = []
        start = 0
        for position, piece in enumerate(pieces):
            end = start + len(piece)
            if start <= self._tokenizer.half_chars or end >= tail:  # the rest is dropped anyhow, as in encode
                read.append((piece, position % 2 == 1))
            start = end
        return Prompt("".join(pieces), self._tokenizer.with_start(pieces[0], self._tokenizer.encode_pieces(read)))

    def _mark(self, text: str) -> str:
        if len(self._marks) >= MAX_HIDDEN:
            raise _too_many()
        self._marks.append(text)
        return f"\ue000{self._nonce}:{len(self._marks) - 1}\ue001"


def _too_many() -> ApiError:
    return bad_request(f"the text holds more than {MAX_HIDDEN} special tokens of the model; leave some out")


class Prompts:
    """Make prompts for models; keeps each model's tokenizer, which `texts` makes."""

    def __init__(self, texts: TextProcess | None = None) -> None:
        self.tokenizers = Tokenizers(texts)
        self._templates = ChatTemplates()
        self._parsed = lru_cache(KEPT_TEMPLATES)(GoTemplate)

    def chat(
        self,
        model: Model,
        messages: list[Message],
        tools: list[Any],
        window: Window,
        go_template: str = "",
        /,
        **names: object,
    ) -> Prompt:
        """Return the prompt of a conversation, its oldest messages dropped until it fits; raise RequestError.

        go_template: goes before the model's own templates.
        """

        def render(kept: list[Message]) -> Prompt:
            """Return the prompt of these messages, whatever its length."""
            return self._render(model, kept, tools, go_template, **names)

        prompt = _shortened(messages, render, window) if window.truncate else render(messages)
        return fit(prompt, window)

    def generate(
        self,
        model: Model,
        system: str,
        prompt: str,
        template: str,
        suffix: str = "",
        window: Window | None = None,
        go_template: str = "",
        before: Sequence[Message] = (),
        /,
        **names: object,
    ) -> Prompt:
        """Return the prompt of a completion, not yet cut to fit but for one with a suffix; raise RequestError.

        template: a request's, in Go; go_template: the model's, which goes before its others; before: messages that
        precede the prompt.
        """
        source = template or go_template
        if suffix:
            go, infill = self._parsed(source), model.texts.infill
            fills = bool(template) or "suffix" in go.names
            if infill is not None and (not fills or infill.is_said_by(go.infill)):
                return self._infill(model, infill, prompt, suffix, window)
            guard = Guarded(self.tokenizers.get(model))
            return guard.prompt(go.infill(guard.hide(prompt), guard.hide(suffix), _thinking(names)))
        if not source and model.texts.chat_template is None and not before:
            guard = Guarded(self.tokenizers.get(model))
            return guard.prompt(guard.hide(f"{system}\n\n{prompt}" if system else prompt))
        messages = [{"role": "system", "content": system}] if system else []
        return self._render(model, [*messages, *before, {"role": "user", "content": prompt}], [], source, **names)

    def raw(self, model: Model, prompt: str) -> Prompt:
        """Return the prompt for text that already is one, special tokens included."""
        tokenizer = self.tokenizers.get(model)
        return Prompt(prompt, tokenizer.with_start(prompt, tokenizer.encode(prompt)))

    def _infill(self, model: Model, infill: Infill, before: str, behind: str, window: Window | None) -> Prompt:
        """Return the prompt that asks for what stands between two texts, cut at both ends to fit where it may be."""
        tokenizer = self.tokenizers.get(model)
        cuts = window is not None and window.truncate and window.shift
        room = window.context - 1 - window.context // INFILL_SHARE if window is not None and cuts else None
        text, tokens = infill.prompt(tokenizer, before, behind, room)
        return Prompt(text, tokens, infill.end_ids(tokenizer))

    def _render(
        self, model: Model, messages: list[Message], tools: list[Any], go_template: str, **names: object
    ) -> Prompt:
        """Return the prompt of messages, whatever its length."""
        guard = Guarded(self.tokenizers.get(model))
        source = model.texts.template_for(bool(tools))
        try:
            hidden = [guard.hide(message) for message in messages]
            if go_template:
                go = self._parsed(go_template)
                return guard.prompt(go.conversation(hidden, guard.hide(tools), _thinking(names)))
            if source is None:
                return guard.prompt("\n".join(f"{m['role']}: {m['content']}" for m in hidden) + "\nassistant:")
            names = {**model.texts.names, **names}
            shown = guard.hide(tools)
            return guard.prompt(self._templates.render(source, _told_tools(source, hidden, shown), shown, **names))
        except ModelError as e:
            raise ModelError(f"model {model.full_name}: {e}") from e
        except RecursionError:
            raise bad_request("the messages or tools are nested too deeply; flatten them") from None


def _told_tools(source: str, messages: list[Message], tools: list[Any]) -> list[Message]:
    """Return the messages; a template that looks for tools in the system message, as Phi 4's do, finds them there."""
    if not tools or not _TOOLS_OF_MESSAGE.search(source):
        return messages
    begins = bool(messages) and messages[0]["role"] == "system"
    system = messages[0] if begins else {"role": "system", "content": ""}
    return [{**system, "tools": json.dumps(tools, ensure_ascii=False)}, *messages[begins:]]


def _thinking(names: dict[str, object]) -> Thinking:
    """Return what Go's templates are told of thinking, from the names that Jinja's get."""
    return Thinking(bool(names.get("thinking")), str(names.get("reasoning_effort", "")), "thinking" in names)


def fit(prompt: Prompt, window: Window) -> Prompt:
    """Return the prompt with its middle cut out where it fills the context; raise ApiError (400) where it may not."""
    limit = window.context - 1
    excess = len(prompt.tokens) - limit
    if excess <= 0:
        return prompt
    if not window.shift or not window.truncate:
        raise bad_request(
            f"{TOO_LONG_TEXT}: {len(prompt.tokens)} tokens against {window.context}; shorten it or raise num_ctx"
        )
    keep = max(0, min(window.keep_tokens if window.keep_tokens >= 0 else limit, limit - 1))
    return replace(prompt, tokens=prompt.tokens[:keep] + prompt.tokens[keep + excess :])


def _shortened(messages: list[Message], render: Callable[[list[Message]], Prompt], window: Window) -> Prompt:
    """Return the prompt with the fewest oldest messages dropped that fits; at worst the system's and the last stay."""

    def attempt(dropped: int) -> Prompt | None:
        """Return the prompt without that many of the oldest messages, or None where it does not do."""
        kept = [m for m in messages[:dropped] if m["role"] == "system"] + messages[dropped:]
        try:
            prompt = render(kept)
        except (ApiError, RequestError, ModelError):
            return None  # some templates refuse a history that does not begin with the user
        return prompt if len(prompt.tokens) <= window.context else None

    whole = render(messages)
    if len(whole.tokens) <= window.context or len(messages) < 2:
        return whole
    low, high = 1, len(messages) - 1  # the length falls as more is dropped, so look for the border by halves
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if attempt(middle) else (middle + 1, high)
    last = len(messages) - 1
    kept = [m for m in messages[:last] if m["role"] == "system"] + messages[last:]
    return attempt(low) or render(kept)
