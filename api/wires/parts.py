"""Read what messages hold on the wires of OpenAI and Anthropic: parts, images, calls of tools, how hard to think."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ConfigDict, WithJsonSchema

from ollampi.api.errors import bad_request, shown
from ollampi.api.guard import json_value

MAX_TOKENS = 2**31 - 1  # of an answer that is asked for; no context holds as many
EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}
FORMATS = ("text", "json_object", "json_schema")
_IMAGE_TYPES = ("image/jpeg", "image/jpg", "image/png", "image/webp")
_IMAGE_URL = re.compile(rf"data:(?:{'|'.join(_IMAGE_TYPES)});base64,")


def one_of(*words: str) -> WithJsonSchema:
    """Return the schema of a text that is one of some words; what is wrong with another is said where it is read."""
    return WithJsonSchema({"type": "string", "enum": list(words)})


def needs(*fields: str) -> ConfigDict:
    """Return what makes the schema of a body name these fields as required; each has a text for where it is missing."""
    return ConfigDict(json_schema_extra={"required": list(fields)})


def as_list(value: Any) -> Any:
    """Return a single text as a list of one; anything else is left for pydantic to check."""
    return [value] if isinstance(value, str) else value


def as_parts(value: Any) -> Any:
    """Return a text as a list of one part that holds it; anything else is left for pydantic to check."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def joined(texts: Iterable[str]) -> str:
    """Return the texts of several parts as one."""
    return "\n".join(texts)


def image_of_url(url: str, where: str) -> str:
    """Return the base64 of a data: URL; raise ApiError (400) for any other, since links are not followed."""
    found = _IMAGE_URL.match(url)
    if not found:
        kinds = ", ".join(_IMAGE_TYPES)
        raise bad_request(f"{where} must be a URL that begins with data:TYPE;base64, where TYPE is one of {kinds}")
    return url[found.end() :]


def image_of_bytes(media_type: str, data: str, where: str) -> str:
    """Return base64 of an image of a known type; raise ApiError (400)."""
    if media_type not in _IMAGE_TYPES:
        raise bad_request(f"{where}.media_type is {shown(media_type, 40)!r}; use one of {', '.join(_IMAGE_TYPES)}")
    return data


def arguments_of(text: str, where: str) -> dict[str, Any]:
    """Return the arguments of a call from their JSON text; raise ApiError (400)."""
    try:
        values = json_value(text) if text.strip() else {}
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise bad_request(f"{where} must be the JSON text of an object")
    return values


def think_of(effort: str | None, where: str) -> bool | str | None:
    """Return Ollama's `think` for an effort, None where nothing was said; raise ApiError (400)."""
    if effort is None:
        return None
    if effort not in EFFORTS:
        raise bad_request(f"{where} is {shown(effort, 40)!r}; use one of {', '.join(EFFORTS)}")
    return EFFORTS[effort]


def tool_of(name: str, description: str, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Return the definition of a tool as Ollama has it."""
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


def call_of(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a call of a tool as Ollama has it in a message."""
    identity = {"id": call_id} if call_id else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def result_of(messages: list[dict[str, Any]], call_id: str, content: str, name: str = "") -> dict[str, Any]:
    """Return what a tool answered as a message; without `name` the tool is that of the call in `messages`."""
    calls = (call for message in reversed(messages) for call in message.get("tool_calls", ()))
    named = name or next((call["function"]["name"] for call in calls if call.get("id") == call_id), "")
    return {"role": "tool", "content": content, "tool_name": named, "tool_call_id": call_id}


def format_of(kind: str, schema: dict[str, Any] | None, where: str) -> str | dict[str, Any] | None:
    """Return Ollama's `format` for a format's type and schema; raise ApiError (400)."""
    if kind == "text":
        return None
    if kind == "json_object":
        return "json"
    if kind != "json_schema":
        raise bad_request(f"{where}.type is {shown(kind, 40)!r}; use text, json_object or json_schema")
    if schema is None:
        raise bad_request(f"{where} has no schema; add one, or use json_object")
    return schema
