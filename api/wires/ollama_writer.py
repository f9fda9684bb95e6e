"""Write the objects of an answer as /api/generate and /api/chat shape them, its keys in Ollama's order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

from ollampi.api.durations import now_text
from ollampi.api.generation import Outcome, Piece
from ollampi.api.stream import encode, line_of
from ollampi.api.tools.calls import ToolCall, new_call_id

_JSON = dict[str, Any]
_TEXT, _TIME = "<text>", "<time>"  # holes in a line; no name of a model looks like these


@dataclass(frozen=True)
class Shape:
    """How one route writes its objects: the part with the text, and in which order the rest follows."""

    part: Callable[[Piece], _JSON]
    logprobs_first: bool
    debug: _JSON


def _response(piece: Piece) -> _JSON:
    return {"response": piece.text} | ({"thinking": piece.thinking} if piece.thinking else {})


def _message(piece: Piece) -> _JSON:
    thinking = {"thinking": piece.thinking} if piece.thinking else {}
    return {"message": {"role": "assistant", "content": piece.text} | thinking}


def _call(call: ToolCall, index: int) -> _JSON:
    return {"id": new_call_id(), "function": {"index": index, "name": call.name, "arguments": call.arguments}}


GENERATE = Shape(_response, logprobs_first=False, debug={"response": ""})
CHAT = Shape(_message, logprobs_first=True, debug={"message": {"role": "", "content": ""}})


def head(name: str, now: str) -> _JSON:
    """Return how every object begins."""
    return {"model": name, "created_at": now}


@dataclass(frozen=True)
class Writer:
    """Writes the pieces of one answer; `before` are the prompt's tokens where these are wanted at its end."""

    name: str
    shape: Shape
    before: list[int] | None
    started_ns: int
    calls: Iterator[int] = field(default_factory=count)  # their numbers

    def line(self, piece: Piece | Outcome) -> str:
        """Return the line of a piece; where it is nothing but text, a line that was written once is filled in."""
        if isinstance(piece, Outcome) or piece.thinking or piece.logprobs or piece.calls:
            return line_of(self.object(piece))
        return self._blank.replace(_TIME, now_text(), 1).replace(f'"{_TEXT}"', encode(piece.text), 1)

    def object(self, piece: Piece | Outcome) -> _JSON:
        """Return the object of a piece, or of the end with what the answer cost."""
        if isinstance(piece, Piece):
            return self._piece(piece, now_text())
        end: _JSON = {"done": True, "done_reason": piece.reason}
        if self.before is not None:
            end["context"] = self.before + piece.tokens
        logprobs = {"logprobs": piece.last.logprobs} if piece.last.logprobs else {}
        metrics = self._metrics(piece)
        rest = logprobs | metrics if self.shape.logprobs_first else metrics | logprobs
        return head(self.name, now_text()) | self._part(piece.last) | end | rest

    def _part(self, piece: Piece) -> _JSON:
        """Return the part with the text, and with the calls in the order of the answer."""
        part = self.shape.part(piece)
        if piece.calls:
            part["message"]["tool_calls"] = [_call(call, next(self.calls)) for call in piece.calls]
        return part

    @cached_property
    def _blank(self) -> str:
        return line_of(self._piece(Piece(_TEXT), _TIME))

    def _piece(self, piece: Piece, now: str) -> _JSON:
        logprobs = {"logprobs": piece.logprobs} if piece.logprobs else {}
        return head(self.name, now) | self._part(piece) | {"done": False} | logprobs

    def _metrics(self, outcome: Outcome) -> _JSON:
        """Return what an answer cost; zeros are left out."""
        usage = outcome.usage
        values = {
            "total_duration": time.perf_counter_ns() - self.started_ns,
            "load_duration": usage.load_ns,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": usage.prompt_ns,
            "eval_count": usage.generated_tokens,
            "eval_duration": usage.decode_ns,
        }
        return {key: value for key, value in values.items() if value}
