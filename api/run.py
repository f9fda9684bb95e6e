"""Follow one answer from the engine to its client, whichever wire writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from flask import Response, request

from ollampi.api.ask import Ask
from ollampi.api.delivery import Delivery
from ollampi.api.engine_client import Done, EngineError, Stream, Tokens
from ollampi.api.generation import Answer, Outcome, Piece, follow
from ollampi.api.prompt import Prompt
from ollampi.api.stream import Form, growing_answer, warned
from ollampi.api.tools.use import ToolUse


@dataclass(frozen=True)
class Run:
    """An answer that the engine makes; closed when it was read, or by `close`. use: the tools that it may call."""

    ask: Ask
    prompt: Prompt
    stream: Stream[Tokens | Done]
    answer: Answer
    unwatch: Callable[[], None]
    use: ToolUse | None

    def close(self) -> None:
        """End the request, whatever state it is in."""
        self.unwatch()
        self.stream.close()

    def whole(self) -> Outcome:
        """Return the end of the answer with all of its text; raise EngineError."""
        try:
            return _joined(follow(self.stream, self.answer))
        finally:
            self.close()

    def growing(self, line: Callable[[Piece | Outcome], str], form: Form) -> Response:
        """Return the answer as it grows, each piece written by `line`; raise EngineError where it does not begin."""
        lines = Delivery(self.stream, self.answer, line, request.environ.get("ollampi.pipe"))
        return warned(growing_answer(iter(lines), form, self.close), self.ask.options.ignored)


@dataclass(frozen=True)
class Rendered:
    """A request whose prompt was wanted, and nothing more."""

    ask: Ask
    prompt: Prompt


@dataclass(frozen=True)
class Moved:
    """A request without text: its model was loaded or unloaded, which `reason` says."""

    ask: Ask
    reason: str


def started(made: Run | Rendered | Moved) -> Run:
    """Return an answer that was started, as it is for every request with text."""
    if not isinstance(made, Run):
        raise EngineError("internal", "a request with text was answered without one")
    return made


def _joined(pieces: Iterator[Piece | Outcome]) -> Outcome:
    """Return the end of an answer with all of its text."""
    parts: list[Piece] = []
    for piece in pieces:
        parts.append(piece.last if isinstance(piece, Outcome) else piece)
        if isinstance(piece, Outcome):
            text, thinking = "".join(p.text for p in parts), "".join(p.thinking for p in parts)
            logprobs, calls = [entry for p in parts for entry in p.logprobs], [call for p in parts for call in p.calls]
            return replace(piece, last=Piece(text, thinking, logprobs, tuple(calls)))
    raise EngineError("internal", "the engine ended an answer without saying why")
