"""Write the message of /v1/messages, and the events of one that grows."""

from __future__ import annotations

import secrets
from typing import Any

from ollampi.api.generation import Outcome, Piece
from ollampi.api.stream import encode
from ollampi.api.tools.calls import ToolCall
from ollampi.api.wires.wire import ANTHROPIC, server_sent

_JSON = dict[str, Any]
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
_TEXT, _THINKING = "text", "thinking"  # kinds of blocks that grow, and where their text is


class Writer:
    """Writes one answer; its events are written by one thread at a time. prompt_tokens: known before it begins."""

    def __init__(self, name: str, prompt_tokens: int, request_id: str) -> None:
        self._id = f"msg_{secrets.token_hex(12)}"
        self._name = name
        self._prompt_tokens = prompt_tokens
        self._request_id = request_id
        self._begun = False
        self._blocks = 0  # that were begun
        self._open = ""  # the kind of the last one while it grows
        self._called = False

    def object(self, outcome: Outcome) -> _JSON:
        """Return the whole message."""
        last = outcome.last
        content = [_block(_THINKING, last.thinking)] if last.thinking else []
        content += [_block(_TEXT, last.text)] if last.text else []
        content += [_tool_use(call) for call in last.calls]
        usage = {"input_tokens": outcome.usage.prompt_tokens, "output_tokens": outcome.usage.generated_tokens}
        return self._message(content) | _end(outcome, bool(last.calls)) | {"usage": usage}

    def line(self, piece: Piece | Outcome) -> str:
        """Return the events of a piece, behind that of the beginning where it is the first."""
        part = piece.last if isinstance(piece, Outcome) else piece
        events = "" if self._begun else self._begin()
        if part.thinking:
            events += self._grow(_THINKING, part.thinking)
        if part.text:
            events += self._grow(_TEXT, part.text)
        for call in part.calls:
            events += self._close() + self._call(call)
        return events + self._finish(piece) if isinstance(piece, Outcome) else events

    def failure(self, status: int, text: str) -> str:
        """Return the last event of a message that failed."""
        return server_sent(ANTHROPIC.error(status, text, self._request_id), "error")

    def _begin(self) -> str:
        self._begun = True
        usage = {"input_tokens": self._prompt_tokens, "output_tokens": 0}
        message = self._message([]) | {"stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event("message_start", {"message": message})

    def _grow(self, kind: str, text: str) -> str:
        """Return the events of more text of a kind of block; no more is written anew than the text."""
        events = ""
        if self._open != kind:
            events = self._close() + self._start(_block(kind, ""))
            self._open = kind
        index, delta = self._blocks - 1, f'{{"type":"{kind}_delta","{kind}":{encode(text)}}}'
        head = f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{index},"delta":'
        return f"{events}{head}{delta}}}\n\n"

    def _start(self, block: _JSON) -> str:
        self._blocks += 1
        return _event("content_block_start", {"index": self._blocks - 1, "content_block": block})

    def _close(self) -> str:
        """Return the event that ends the growing block, where there is one."""
        if not self._open:
            return ""
        self._open = ""
        return _event("content_block_stop", {"index": self._blocks - 1})

    def _call(self, call: ToolCall) -> str:
        """Return the events of a call, which comes whole."""
        self._called = True
        started = self._start(_tool_use(call) | {"input": {}})
        delta = {"type": "input_json_delta", "partial_json": encode(call.arguments)}
        index = {"index": self._blocks - 1}
        return started + _event("content_block_delta", index | {"delta": delta}) + _event("content_block_stop", index)

    def _finish(self, outcome: Outcome) -> str:
        usage = {"input_tokens": outcome.usage.prompt_tokens, "output_tokens": outcome.usage.generated_tokens}
        end = {"delta": _end(outcome, self._called), "usage": usage}
        return self._close() + _event("message_delta", end) + _event("message_stop", {})

    def _message(self, content: list[_JSON]) -> _JSON:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._name, "content": content}


def _event(kind: str, values: _JSON) -> str:
    return server_sent({"type": kind, **values}, kind)


def _block(kind: str, text: str) -> _JSON:
    """Return a block with text; clients expect a signature of thoughts, which nobody checks here."""
    return {"type": kind, kind: text} | ({"signature": ""} if kind == _THINKING else {})


def _tool_use(call: ToolCall) -> _JSON:
    return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name, "input": call.arguments}


def _end(outcome: Outcome, called: bool) -> _JSON:
    """Return why a message ended."""
    if called and outcome.reason == "stop":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if outcome.stop:
        return {"stop_reason": "stop_sequence", "stop_sequence": outcome.stop}
    return {"stop_reason": _STOP_REASONS.get(outcome.reason, "end_turn"), "stop_sequence": None}
