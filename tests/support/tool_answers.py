"""Tools, and answers that call them, for the tests of tool calls."""

from __future__ import annotations

import random
from typing import Any

from ollampi.api.tools.calls import ToolCall
from ollampi.api.tools.definitions import Tool, tools_of
from ollampi.api.tools.dialects import Dialect, dialect_of
from ollampi.api.tools.splitter import ToolSplitter

WEATHER = {
    "type": "object",
    "properties": {
        "place": {"type": "string"},
        "days": {"type": "array", "items": {"type": "number"}},
        "exact": {"type": "boolean"},
        "unit": {"type": ["string", "null"]},
        "deep": {"type": "object"},
        "empty": {"type": "string"},
        "count": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/Many"}]},
    },
    "$defs": {"Many": {"type": "array", "items": {"type": "integer"}}},
}
ARGUMENTS: dict[str, Any] = {
    "place": 'Köln "<b>" {x}]\n(\\\'',
    "days": [1, -2.5e3],
    "exact": True,
    "unit": None,
    "deep": {"ä": {"b": [], "c": "}"}, "d_e": [[0], {"f": False}]},
    "empty": "",
    "count": 7,
}


def definition(name: str, parameters: Any = None, **function: Any) -> dict[str, Any]:
    """Return a tool as clients write it."""
    more = {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": {"name": name, **more, **function}}


TOOLS = tools_of([definition("get_weather", WEATHER), definition("now"), definition("files/read.text:v2-x")])


def dialect(template: str) -> Dialect:
    """Return the dialect of a template that has one."""
    found = dialect_of(template)
    assert found is not None
    return found


def split(
    found: Dialect, text: str, cuts: random.Random | None = None, tools: list[Tool] = TOOLS
) -> tuple[str, list[ToolCall]]:
    """Return the content and the calls of an answer, fed as a whole or in random pieces."""
    splitter = ToolSplitter(found, tools)
    content, calls = "", []
    place = 0
    while place < len(text):
        size = cuts.choice((1, 1, 2, 3, 7, 40)) if cuts else len(text)
        more, found_calls = splitter.feed(text[place : place + size])
        content, place = content + more, place + size
        calls += found_calls
    more, found_calls = splitter.flush()
    return content + more, calls + found_calls
