"""Follow one answer: tokens in, pieces of text out, until the engine or a stop string ends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ollampi.api.detokenizer import StopFilter, detokenizer
from ollampi.api.engine_client import Done, EngineError, Stream, Tokens
from ollampi.api.text_tokenizer import TextTokenizer
from ollampi.api.thinking import ThinkSplitter
from ollampi.api.tools.calls import ToolCall
from ollampi.api.tools.splitter import ToolSplitter
from ollampi.mpiruntime.request import TokenLogprob, Usage

MAX_REPEATS = 30  # as in Ollama


@dataclass(frozen=True)
class Piece:
    """The next part of an answer; logprobs are ready for JSON."""

    text: str = ""
    thinking: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The end of an answer with what was held back until then.

    tokens are all of the answer; stop is the stop string that ended it, empty where something else did.
    """

    last: Piece
    reason: str
    usage: Usage
    tokens: list[int]
    stop: str = ""


class Repeats:
    """Notice an answer that goes in circles: a piece that repeats the one before, white space aside, too often."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._count = 0

    def feed(self, text: str) -> bool:
        """Take the next piece; return whether the answer must end."""
        text = text.strip()
        self._count = self._count + 1 if text == self._last else 0
        self._last = text
        return self._count > MAX_REPEATS


class Answer:
    """One answer as it grows: tokens in, pieces of text out.

    tools: finds calls in what is no reasoning, where the answer may hold any; with one_call it ends behind the first;
    with only_calls, as where a grammar forces them, the rest is the beginning of one that was cut off, and dropped.
    end: why it must end here, None while it may go on.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt: list[int],
        stops: list[str],
        thinking: ThinkSplitter | None,
        tools: ToolSplitter | None = None,
        one_call: bool = False,
        only_calls: bool = False,
    ) -> None:
        self.tokens: list[int] = []
        self.end: str | None = None
        self._tokenizer = tokenizer
        self._detokenizer = detokenizer(tokenizer, prompt[-64:], tools.special if tools is not None else ())
        self._stops = StopFilter(stops)
        self._thinking = thinking
        self._tools = tools
        self._one_call, self._called, self._only_calls = one_call, False, only_calls
        self._repeats = Repeats()
        self._text = ""  # that no piece has held yet
        self._logprobs: list[dict[str, Any]] = []  # the same

    def feed(self, event: Tokens) -> Piece | None:
        """Return what the next tokens add; None where that must wait, or comes with the Outcome because of `end`.

        Tokens that still come after the end, until the engine heard of it, are no part of the answer.
        """
        if self.end:
            return None
        for index, token in enumerate(event.tokens):
            if index < len(event.logprobs):
                self._logprobs.append(_logprob(event.logprobs[index], self._tokenizer))
            self._take(token)
            if self.end:
                break
        if self.end or not self._text:
            return None
        piece = self._piece(final=False)
        if self._one_call and piece.calls:
            self.end = "stop"
        return piece if piece.text or piece.thinking or piece.calls else None

    def finish(self, done: Done) -> Outcome:
        """Return the end of an answer that the engine ended; raise EngineError where it was cancelled."""
        if done.reason == "cancel":
            raise EngineError("cancelled", "request canceled")
        self._text += self._stops.feed(self._detokenizer.flush())
        return self._outcome("stop" if self._stops.stopped else done.reason, done.usage)

    def cut(self, reason: str, usage: Usage) -> Outcome:
        """Return the end of an answer that must end here; of its usage only the tokens up to here count."""
        return self._outcome(reason, replace(usage, generated_tokens=len(self.tokens)))

    def _take(self, token: int) -> None:
        self.tokens.append(token)
        text = self._detokenizer.feed(token)
        if (text or token in self._tokenizer.special_ids) and self._repeats.feed(text):  # else a part of a character
            self.end = "length"
        self._text += self._stops.feed(text)
        if self._stops.stopped:
            self.end = "stop"

    def _outcome(self, reason: str, usage: Usage) -> Outcome:
        self._text += self._stops.flush()
        return Outcome(self._piece(final=True), reason, usage, self.tokens, self._stops.found)

    def _piece(self, final: bool) -> Piece:
        """Return what no piece has held yet, split from the reasoning where the model thinks, and from calls."""
        thought, content = "", self._text
        calls: tuple[ToolCall, ...] = ()
        if self._thinking is not None:
            thought, content = self._thinking.feed(self._text)
            if final:
                more_thought, more_content = self._thinking.flush()
                thought, content = thought + more_thought, content + more_content
        if self._tools is not None:
            content, calls = _split_calls(self._tools, content, final)
            content = "" if self._only_calls else content
            if self._one_call and calls:
                calls = () if self._called else calls[:1]
                self._called = True
        self._text = ""
        piece = Piece(content, thought, self._logprobs, calls)
        if content or thought or calls:
            self._logprobs = []
        return piece


def _split_calls(tools: ToolSplitter, text: str, final: bool) -> tuple[str, tuple[ToolCall, ...]]:
    """Return the content and the calls that a text adds, with all that waited where it is the last."""
    content, calls = tools.feed(text)
    more_content, more_calls = tools.flush() if final else ("", [])
    return content + more_content, (*calls, *more_calls)


def follow(stream: Stream[Tokens | Done], answer: Answer) -> Iterator[Piece | Outcome]:
    """Yield the pieces of an answer and at last its Outcome; raise EngineError where the engine gives up."""
    for event in stream:
        if isinstance(event, Done):
            yield answer.finish(event)
            return
        piece = answer.feed(event)
        if piece is not None:
            yield piece
        if reason := answer.end:
            stream.cancel(reason)
            yield answer.cut(reason, _rest(stream))
            return
    raise EngineError("internal", "the engine ended an answer without saying why")


def _rest(stream: Stream[Tokens | Done]) -> Usage:
    """Return what a cancelled answer cost."""
    try:
        return next((event.usage for event in stream if isinstance(event, Done)), Usage())
    except EngineError:
        return Usage()


def _logprob(entry: TokenLogprob, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Return a token's log-probability as the API shows it."""
    shown = _token_logprob(entry.token, entry.logprob, tokenizer)
    if entry.top:
        shown["top_logprobs"] = [_token_logprob(token, value, tokenizer) for token, value in entry.top]
    return shown


def _token_logprob(token: int, logprob: float, tokenizer: TextTokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, -1e9), "bytes": list(raw)}
