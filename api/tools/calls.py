"""One call of a tool, and how it is read from the JSON that models write."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ollampi.api.tools.json_scan import JsonScan, NotACall

_ALPHABET = string.ascii_lowercase + string.digits
_ID_CHARS = 8
LARGEST = 1.7976931348623157e308
_MOST_DIGITS = 400  # beyond any float, and far below what Python refuses to read
NAME_KEYS = ("name", "tool_name", "function")
# Command R writes tool_name, Mistral and Command R7B write ids, OpenAI's own form nests all but the type.
CALL_KEYS = frozenset((*NAME_KEYS, "arguments", "parameters", "type", "id", "index", "tool_call_id"))


@dataclass(frozen=True)
class ToolCall:
    """What a model asks for: a tool by its name, with arguments that can be written as JSON."""

    name: str
    arguments: dict[str, Any]


def new_call_id() -> str:
    """Return an id for a call as Ollama writes them."""
    return "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARS))


def call_of(value: Any, names: Collection[str], strict: bool) -> ToolCall:
    """Return the call that a JSON object describes; raise NotACall.

    names: those of the request's tools; strict: arguments must be there, if only empty.
    """
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = next((value[key] for key in NAME_KEYS if isinstance(value.get(key), str)), None)
    given = "arguments" if "arguments" in value else "parameters"
    if not isinstance(name, str) or name not in names or (strict and given not in value):
        raise NotACall
    return ToolCall(name, arguments_of(value.get(given)))


def arguments_of(value: Any) -> dict[str, Any]:
    """Return a call's arguments; some models write them as JSON inside a string, or none at all; raise NotACall."""
    if isinstance(value, str) and value.strip():
        value = whole_object(value)
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise NotACall
    return value


def whole_object(text: str) -> Any:
    """Return the JSON object that a text is; raise NotACall where it is none."""
    scan = JsonScan()
    text = text.strip()
    ends = [place for place, char in enumerate(text, 1) if scan.take(char)]  # what follows the end is refused
    if ends != [len(text)]:
        raise NotACall
    return json_value(text)


def json_value(text: str) -> Any:
    """Return the value of JSON text that JsonScan has accepted, so that it can be written again."""
    value = json.loads(text, strict=False, parse_float=finite, parse_int=whole)
    return clean(value) if "\\u" in text else value


def finite(text: str) -> float:
    """Return a number; those beyond all floats become the largest, since JSON has no infinity."""
    return max(-LARGEST, min(LARGEST, float(text)))


def whole(text: str) -> int | float:
    """Return an integer, rounded where it has more digits than Python reads."""
    return int(text) if len(text) <= _MOST_DIGITS else finite(text)


def clean(value: Any) -> Any:
    """Return a JSON value without halves of surrogate pairs, which no answer can hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return value
