"""The items of an answer of /v1/responses: messages and reasoning, which grow, and calls of tools."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ollampi.api.stream import encode
from ollampi.api.tools.calls import ToolCall

_JSON = dict[str, Any]
_Event = tuple[str, _JSON]  # its kind and values


@dataclass(frozen=True)
class Kind:
    """One kind of item that grows.

    item: one from its id, text and status; part: what holds the text in it; prefix: of its ids; index: of the part;
    part_events, text_events: how the kinds of their events begin; beside: what the events of text have besides.
    """

    prefix: str
    item: Callable[[str, str, str], _JSON]
    part: Callable[[str], _JSON]
    index: str
    part_events: str
    text_events: str
    beside: _JSON


def _text_part(text: str) -> _JSON:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _summary_part(text: str) -> _JSON:
    return {"type": "summary_text", "text": text}


def _message(item_id: str, text: str, status: str) -> _JSON:
    content = [] if status == "in_progress" else [_text_part(text)]
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _reasoning(item_id: str, text: str, status: str) -> _JSON:
    return {"id": item_id, "type": "reasoning", "summary": [] if status == "in_progress" else [_summary_part(text)]}


MESSAGE = Kind(
    "msg",
    _message,
    _text_part,
    index="content_index",
    part_events="response.content_part",
    text_events="response.output_text",
    beside={"logprobs": []},
)
REASONING = Kind(
    "rs",
    _reasoning,
    _summary_part,
    index="summary_index",
    part_events="response.reasoning_summary_part",
    text_events="response.reasoning_summary_text",
    beside={},
)


class OpenItem:
    """An item whose text grows; delta_head is how the event of more text begins, up to its number."""

    def __init__(self, kind: Kind, index: int) -> None:
        self.kind = kind
        self.text: list[str] = []
        self._id = new_id(kind.prefix)
        self._index = index
        self._place = {"item_id": self._id, "output_index": index, kind.index: 0}
        delta = f"{kind.text_events}.delta"
        head = encode({"type": delta, **self._place, **kind.beside})
        self.delta_head = f'event: {delta}\ndata: {head[:-1]},"sequence_number":'

    def opening(self) -> list[_Event]:
        """Return the events before the first text."""
        item = self.kind.item(self._id, "", "in_progress")
        return [
            ("response.output_item.added", {"output_index": self._index, "item": item}),
            (f"{self.kind.part_events}.added", {**self._place, "part": self.kind.part("")}),
        ]

    def closing(self, status: str) -> tuple[_JSON, list[_Event]]:
        """Return the complete item and the events behind its last text."""
        text = "".join(self.text)
        item = self.kind.item(self._id, text, status)
        return item, [
            (f"{self.kind.text_events}.done", {**self._place, "text": text, **self.kind.beside}),
            (f"{self.kind.part_events}.done", {**self._place, "part": self.kind.part(text)}),
            ("response.output_item.done", {"output_index": self._index, "item": item}),
        ]


def new_id(prefix: str) -> str:
    """Return an id that begins with `prefix`."""
    return f"{prefix}_{secrets.token_hex(16)}"


def call_item(item_id: str, call_id: str, call: ToolCall) -> _JSON:
    """Return the item of a call, complete."""
    identity = {"id": item_id, "type": "function_call", "status": "completed", "call_id": call_id}
    return identity | {"name": call.name, "arguments": encode(call.arguments)}
