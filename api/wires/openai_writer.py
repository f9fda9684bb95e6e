"""Write the objects of an answer as /v1/chat/completions and /v1/completions shape them, whole and as they grow."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ollampi.api.generation import Outcome, Piece
from ollampi.api.routes import EVENTS
from ollampi.api.stream import Form, encode
from ollampi.api.tools.calls import new_call_id
from ollampi.api.wires.wire import OPENAI, server_sent
from ollampi.mpiruntime.request import Usage

FORM = Form(EVENTS, lambda status, text: server_sent(OPENAI.error(status, text, "")))
_JSON = dict[str, Any]
_TEXT = "<text>"  # the hole in a chunk; no name of a model looks like this
_DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Asked:
    """What a request asks for: how many prompts, answers to each, usage in a stream, what stands before the answers.

    heads: a text for each prompt, or none.
    """

    prompts: int
    answers: int
    usage: bool
    heads: Sequence[str] = ()

    @property
    def choices(self) -> int:
        """Return how many answers there are in all; those to one prompt are neighbours."""
        return self.prompts * self.answers

    def behind_head(self, piece: Piece, place: int) -> Piece:
        """Return the first piece of a choice, behind what stands before it."""
        head = self.heads[place // self.answers] if self.heads else ""
        return replace(piece, text=head + piece.text) if head else piece

    def cost(self, usages: Mapping[int, Usage]) -> dict[str, int]:
        """Return what all choices cost, of usages by place; those to one prompt share it."""
        prompt = sum(usages[place].prompt_tokens for place in range(0, self.choices, self.answers))
        answer = sum(usage.generated_tokens for usage in usages.values())
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


@dataclass
class Sent:
    """What was sent of one choice of a stream: anything, how many calls, how many characters of its tokens."""

    begun: bool = False
    calls: int = 0
    characters: int = 0


@dataclass(frozen=True)
class Shape:
    """How one route writes: the prefix of its ids, the kinds of its objects, and a choice, whole or its next part."""

    prefix: str
    whole_kind: str
    chunk_kind: str
    whole: Callable[[Piece], _JSON]
    part: Callable[[Piece, Sent], _JSON]


def _call(call_id: str, index: int, name: str, arguments: _JSON) -> _JSON:
    function = {"name": name, "arguments": encode(arguments)}
    return {"index": index, "id": call_id, "type": "function", "function": function}


def _calls(piece: Piece, before: int = 0) -> list[_JSON]:
    return [_call(new_call_id(), before + n, call.name, call.arguments) for n, call in enumerate(piece.calls)]


def _chat_logprobs(piece: Piece) -> _JSON:
    """Return the log-probabilities of a piece; each entry has top_logprobs, if only none."""
    if not piece.logprobs:
        return {}
    return {"logprobs": {"content": [{**entry, "top_logprobs": _tops(entry)} for entry in piece.logprobs]}}


def _tops(entry: _JSON) -> list[_JSON]:
    tops: list[_JSON] = entry.get("top_logprobs", [])
    return tops


def _chat_whole(piece: Piece) -> _JSON:
    message: _JSON = {"role": "assistant", "content": None if piece.calls and not piece.text else piece.text}
    if piece.thinking:
        message["reasoning"] = piece.thinking
    if piece.calls:
        message["tool_calls"] = _calls(piece)
    return {"message": message} | _chat_logprobs(piece)


def _chat_part(piece: Piece, sent: Sent) -> _JSON:
    delta: _JSON = {} if sent.begun else {"role": "assistant"}
    if piece.thinking:
        delta["reasoning"] = piece.thinking
    if piece.text or piece.logprobs:
        delta["content"] = piece.text
    if piece.calls:
        delta["tool_calls"] = _calls(piece, sent.calls)
    return {"delta": delta} | _chat_logprobs(piece)


def _text_whole(piece: Piece) -> _JSON:
    return _text_part(piece, Sent())


def _text_part(piece: Piece, sent: Sent) -> _JSON:
    reasoning = {"reasoning": piece.thinking} if piece.thinking else {}
    return {"text": piece.text} | reasoning | _text_logprobs(piece, sent.characters)


def _text_logprobs(piece: Piece, characters: int) -> _JSON:
    """Return the log-probabilities of a piece in the older form, lists of equal length."""
    if not piece.logprobs:
        return {}
    offsets = [characters]
    for entry in piece.logprobs:
        offsets.append(offsets[-1] + len(entry["token"]))
    lists = {
        "tokens": [entry["token"] for entry in piece.logprobs],
        "token_logprobs": [entry["logprob"] for entry in piece.logprobs],
        "top_logprobs": [{top["token"]: top["logprob"] for top in _tops(entry)} for entry in piece.logprobs],
        "text_offset": offsets[:-1],
    }
    return {"logprobs": lists}


CHAT = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk", _chat_whole, _chat_part)
TEXT = Shape("cmpl-", "text_completion", "text_completion", _text_whole, _text_part)


class Writer:
    """Writes the pieces of all choices of one answer; its lines are written by one thread at a time."""

    def __init__(self, name: str, shape: Shape, about: Asked) -> None:
        self._head = {
            "id": shape.prefix + secrets.token_hex(12),
            "object": shape.chunk_kind,
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": "fp_ollama",
        }
        self._shape = shape
        self._about = about
        self._choices = [Sent() for _ in range(about.choices)]
        self._blanks = [self._blank(place) for place in range(about.choices)]
        self._ended: dict[int, Usage] = {}

    def line(self, piece: Piece | Outcome, place: int = 0) -> str:
        """Return the events of a piece of a choice; where it is nothing but text, one that is there is filled in."""
        sent = self._choices[place]
        if isinstance(piece, Outcome):
            return self._end(piece, sent, place)
        if not sent.begun or piece.thinking or piece.logprobs or piece.calls:
            return self._part(piece, sent, place)
        before, after = self._blanks[place]
        return f"{before}{encode(piece.text)}{after}"

    def object(self, outcomes: Sequence[Outcome]) -> _JSON:
        """Return the object of a whole answer."""
        choices = []
        for place, end in enumerate(outcomes):
            whole = self._shape.whole(self._about.behind_head(end.last, place))
            choices.append({"index": place, **whole, "finish_reason": _finish_reason(end, len(end.last.calls))})
        usage = self._about.cost({place: end.usage for place, end in enumerate(outcomes)})
        return self._head | {"object": self._shape.whole_kind, "choices": choices, "usage": usage}

    def _event(self, place: int, part: _JSON, finish_reason: str | None) -> str:
        return server_sent(self._head | {"choices": [{"index": place, **part, "finish_reason": finish_reason}]})

    def _blank(self, place: int) -> tuple[str, str]:
        """Return what is before and behind the text of a choice's event."""
        event = self._event(place, self._shape.part(Piece(_TEXT), Sent(begun=True)), None)
        before, _, after = event.partition(f'"{_TEXT}"')
        return before, after

    def _part(self, piece: Piece, sent: Sent, place: int, finish_reason: str | None = None) -> str:
        """Return the event of a piece of any kind."""
        if not sent.begun:
            piece = self._about.behind_head(piece, place)
        event = self._event(place, self._shape.part(piece, sent), finish_reason)
        sent.begun = True
        sent.calls += len(piece.calls)
        sent.characters += sum(len(entry["token"]) for entry in piece.logprobs)
        return event

    def _end(self, outcome: Outcome, sent: Sent, place: int) -> str:
        """Return the last events of a choice, and of the stream where it is the last one."""
        last = outcome.last
        text = self._part(last, sent, place) if last.text or last.thinking or last.calls or last.logprobs else ""
        text += self._part(Piece(), sent, place, _finish_reason(outcome, sent.calls))
        self._ended[place] = outcome.usage
        if len(self._ended) < len(self._choices):
            return text
        if self._about.usage:
            text += server_sent(self._head | {"choices": [], "usage": self._about.cost(self._ended)})
        return text + _DONE


def _finish_reason(outcome: Outcome, calls: int) -> str:
    return "tool_calls" if calls and outcome.reason == "stop" else outcome.reason
