"""Follow one answer: tokens in, pieces of text out, until the engine or a stop string ends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ollampi.api.detokenizer import Detokenizer, StopFilter
from ollampi.api.engine_client import Done, EngineError, Stream, Tokens
from ollampi.api.text_tokenizer import TextTokenizer
from ollampi.api.thinking import ThinkSplitter
from ollampi.mpiruntime.request import TokenLogprob, Usage

MAX_REPEATS = 30  # as in Ollama


@dataclass(frozen=True)
class Piece:
    """The next part of an answer; logprobs are ready for JSON."""

    text: str = ""
    thinking: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """The end of an answer with what was held back until then; tokens are all of the answer."""

    last: Piece
    reason: str
    usage: Usage
    tokens: list[int]


class Repeats:
    """Notice an answer that goes in circles: a piece that repeats the one before, white space aside, too often."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._count = 0

    def feed(self, text: str) -> None:
        """Take the next piece."""
        text = text.strip()
        self._count = self._count + 1 if text == self._last else 0
        self._last = text

    @property
    def exceeded(self) -> bool:
        """Return whether the answer must end."""
        return self._count > MAX_REPEATS


@dataclass(frozen=True)
class TextPath:
    """The steps from tokens to text of one answer."""

    tokenizer: TextTokenizer
    detokenizer: Detokenizer
    stops: StopFilter
    thinking: ThinkSplitter | None
    repeats: Repeats = field(default_factory=Repeats)

    @property
    def end(self) -> str | None:
        """Return why the answer must end here, or None where it may go on."""
        if self.stops.stopped:
            return "stop"
        return "length" if self.repeats.exceeded else None


def text_path(
    tokenizer: TextTokenizer, prompt: list[int], stops: list[str], thinking: ThinkSplitter | None
) -> TextPath:
    """Return the steps for an answer to `prompt`."""
    return TextPath(tokenizer, Detokenizer(tokenizer, prompt[-64:]), StopFilter(stops), thinking)


def follow(stream: Stream[Tokens | Done], path: TextPath) -> Iterator[Piece | Outcome]:
    """Yield the pieces of an answer and at last its Outcome; raise EngineError where the engine gives up."""
    tokens: list[int] = []
    pending: list[dict[str, Any]] = []
    for event in stream:
        if isinstance(event, Done):
            yield _outcome(event, path, tokens, pending)
            return
        text = _take(event, path, tokens, pending)
        if reason := path.end:
            stream.cancel(reason)
            usage = _rest(stream, len(tokens))
            yield Outcome(_piece(path, text + path.stops.flush(), pending, final=True), reason, usage, tokens)
            return
        piece = _piece(path, text, [], final=False)
        if piece.text or piece.thinking:
            yield Piece(piece.text, piece.thinking, pending)
            pending = []
    raise EngineError("internal", "the engine ended an answer without saying why")


def _take(event: Tokens, path: TextPath, tokens: list[int], pending: list[dict[str, Any]]) -> str:
    """Return the text that an event adds; append its tokens and log-probabilities up to where the answer must end."""
    text = ""
    for index, token in enumerate(event.tokens):
        tokens.append(token)
        if index < len(event.logprobs):
            pending.append(_logprob(event.logprobs[index], path.tokenizer))
        piece = path.detokenizer.feed(token)
        if piece or token in path.tokenizer.special_ids:  # else a part of a character
            path.repeats.feed(piece)
        text += path.stops.feed(piece)
        if path.end:
            break
    return text


def _piece(path: TextPath, text: str, logprobs: list[dict[str, Any]], final: bool) -> Piece:
    """Return `text` as content, or split from the reasoning where the model thinks."""
    if path.thinking is None:
        return Piece(text, "", logprobs)
    thought, content = path.thinking.feed(text)
    if final:
        more_thought, more_content = path.thinking.flush()
        thought, content = thought + more_thought, content + more_content
    return Piece(content, thought, logprobs)


def _outcome(done: Done, path: TextPath, tokens: list[int], pending: list[dict[str, Any]]) -> Outcome:
    """Return the end of an answer that the engine ended."""
    if done.reason == "cancel":
        raise EngineError("cancelled", "request canceled")
    text = path.stops.feed(path.detokenizer.flush())
    reason = "stop" if path.stops.stopped else done.reason
    return Outcome(_piece(path, text + path.stops.flush(), pending, final=True), reason, done.usage, tokens)


def _rest(stream: Stream[Tokens | Done], num_tokens: int) -> Usage:
    """Return what a cancelled answer cost, counting only the tokens that belong to it."""
    try:
        usage = next((event.usage for event in stream if isinstance(event, Done)), Usage())
    except EngineError:
        usage = Usage()
    return Usage(usage.prompt_tokens, num_tokens, usage.load_ns, usage.prompt_ns, usage.decode_ns)


def _logprob(entry: TokenLogprob, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Return a token's log-probability as the API shows it."""
    shown = _token_logprob(entry.token, entry.logprob, tokenizer)
    if entry.top:
        shown["top_logprobs"] = [_token_logprob(token, value, tokenizer) for token, value in entry.top]
    return shown


def _token_logprob(token: int, logprob: float, tokenizer: TextTokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, -1e9), "bytes": list(raw)}
