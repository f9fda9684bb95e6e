"""Read the messages of a conversation into the form that chat templates expect."""

from __future__ import annotations

import re
from typing import Any

from ollampi.api.errors import bad_request, shown
from ollampi.api.wires.ollama_bodies import Message

# Templates put a role between the ends of a special token: it must not bring others of its own.
_ROLE = re.compile(r"[\w-]{0,64}")


def turn_of(message: Message) -> dict[str, Any]:
    """Return one message as chat templates expect it; raise ApiError (400)."""
    role = message.role.lower()
    if not _ROLE.fullmatch(role):
        raise bad_request(f"role {shown(role)!r} must be a word such as system, user, assistant or tool")
    turn: dict[str, Any] = {"role": role, "content": message.content}
    if message.thinking:
        turn["thinking"] = turn["reasoning_content"] = message.thinking
    if message.tool_calls:
        turn["tool_calls"] = [{"type": "function"} | call for call in message.tool_calls]
    if message.tool_name:
        turn["name"] = message.tool_name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def with_call_ids(turns: list[dict[str, Any]]) -> None:
    """Give an id to each tool call that has none, and to the results in the same order: some templates insist on them.

    An id has nine letters and digits, as Mistral's templates want it.
    """
    number = 0
    open_ids: list[str] = []
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            call.setdefault("id", f"call{number:05d}")
            open_ids.append(call["id"])
            number += 1
        if turn["role"] == "tool" and open_ids:
            found = turn.setdefault("tool_call_id", open_ids[0])
            open_ids = [call_id for call_id in open_ids if call_id != found]
