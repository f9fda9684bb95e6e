"""Write the object of /v1/responses, and the events of one that grows, numbered in their order."""

from __future__ import annotations

import time
from typing import Any

from ollampi.api.generation import Outcome, Piece
from ollampi.api.stream import encode
from ollampi.api.tools.calls import ToolCall, new_call_id
from ollampi.api.wires.responses_bodies import ResponsesBody
from ollampi.api.wires.responses_items import MESSAGE, REASONING, Kind, OpenItem, call_item, new_id
from ollampi.api.wires.wire import server_sent
from ollampi.mpiruntime.request import Usage

_JSON = dict[str, Any]


class Writer:
    """Writes one answer; its events are written by one thread at a time."""

    def __init__(self, body: ResponsesBody) -> None:
        self._id = new_id("resp")
        self._body = body
        self._created = int(time.time())
        self._number = 0  # of the next event
        self._items: list[_JSON] = []  # that are complete
        self._open: OpenItem | None = None

    def object(self, outcome: Outcome) -> _JSON:
        """Return the whole answer."""
        last, status = outcome.last, _status(outcome)
        items = [REASONING.item(new_id("rs"), last.thinking, status)] if last.thinking else []
        if last.text or not last.calls:
            items.append(MESSAGE.item(new_id("msg"), last.text, status))
        return self._end(outcome, items + [call_item(new_id("fc"), new_call_id(), call) for call in last.calls])

    def line(self, piece: Piece | Outcome) -> str:
        """Return the events of a piece, behind those of the beginning where it is the first."""
        part = piece.last if isinstance(piece, Outcome) else piece
        events = "" if self._number else self._begin()
        if part.thinking:
            events += self._grow(REASONING, part.thinking)
        if part.text:
            events += self._grow(MESSAGE, part.text)
        for call in part.calls:
            events += self._close() + self._call(call)
        return events + self._finish(piece) if isinstance(piece, Outcome) else events

    def failure(self, status: int, text: str) -> str:
        """Return the last event of an answer that failed."""
        error = {"code": "server_error" if status >= 500 else "invalid_prompt", "message": text}
        return self._event("response.failed", {"response": self._response("failed", self._items) | {"error": error}})

    def _begin(self) -> str:
        begun = {"response": self._response("in_progress", [])}
        return self._event("response.created", begun) + self._event("response.in_progress", begun)

    def _finish(self, outcome: Outcome) -> str:
        """Return the last events; an answer without anything gets an empty message."""
        events = "" if self._items or self._open else self._grow(MESSAGE, "")
        events += self._close(_status(outcome))
        end = self._end(outcome, self._items)
        return events + self._event(f"response.{end['status']}", {"response": end})

    def _event(self, kind: str, values: _JSON) -> str:
        self._number += 1
        return server_sent({"type": kind, "sequence_number": self._number - 1, **values}, kind)

    def _grow(self, kind: Kind, text: str) -> str:
        """Return the events of more text of a kind; where it is open already, its last event is filled in again."""
        events = ""
        if self._open is None or self._open.kind is not kind:
            events = self._close()
            self._open = OpenItem(kind, len(self._items))
            events += "".join(self._event(*event) for event in self._open.opening())
        if not text:
            return events
        self._open.text.append(text)
        self._number += 1
        return f'{events}{self._open.delta_head}{self._number - 1},"delta":{encode(text)}}}\n\n'

    def _close(self, status: str = "completed") -> str:
        """Return the events that end the open item, where there is one."""
        if self._open is None:
            return ""
        item, ending = self._open.closing(status)
        self._items.append(item)
        self._open = None
        return "".join(self._event(*event) for event in ending)

    def _call(self, call: ToolCall) -> str:
        """Return the events of a call, which comes whole."""
        item, index = call_item(new_id("fc"), new_call_id(), call), len(self._items)
        self._items.append(item)
        begun = {"output_index": index, "item": item | {"status": "in_progress", "arguments": ""}}
        place, arguments = {"item_id": item["id"], "output_index": index}, item["arguments"]
        return (
            self._event("response.output_item.added", begun)
            + self._event("response.function_call_arguments.delta", {**place, "delta": arguments})
            + self._event("response.function_call_arguments.done", {**place, "name": call.name, "arguments": arguments})
            + self._event("response.output_item.done", {"output_index": index, "item": item})
        )

    def _end(self, outcome: Outcome, items: list[_JSON]) -> _JSON:
        """Return a complete answer."""
        end = self._response(_status(outcome), items) | {"usage": _usage(outcome.usage)}
        return end | ({"incomplete_details": {"reason": "max_output_tokens"}} if outcome.reason == "length" else {})

    def _response(self, status: str, output: list[_JSON]) -> _JSON:
        """Return the answer with what was asked."""
        body = self._body
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions or None,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort, "summary": body.reasoning.summary},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": body.text.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "tools": [tool.model_dump() for tool in body.tools],
            "top_p": body.top_p,
            "truncation": body.truncation,
            "usage": None,
            "user": None,
            "metadata": body.metadata,
        }


def _status(outcome: Outcome) -> str:
    return "incomplete" if outcome.reason == "length" else "completed"


def _usage(usage: Usage) -> _JSON:
    """Return what an answer cost; what of it was cached or reasoning is not counted."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
    }
