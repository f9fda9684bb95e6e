"""Read the tools of a request, and refuse what can be none."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ollampi.api.errors import bad_request, shown
from ollampi.api.formats import MAX_GRAMMAR_BYTES
from ollampi.api.tools.schema_check import SchemaError, checked

MAX_TOOLS = 1024
# More than OpenAI takes, since Ollama's clients name tools after servers and paths; nothing that ends a name in any
# dialect.
_NAME = re.compile(r"[\w.:/@-]{1,128}")


@dataclass(frozen=True)
class Tool:
    """A tool that a model may call.

    parameters: the JSON schema of its arguments, empty for any object; values: the definition as the client wrote it,
    for the prompt.
    """

    name: str
    parameters: dict[str, Any]
    values: dict[str, Any]


def tools_of(values: Sequence[Any]) -> list[Tool]:
    """Return the tools of a request, [{"type": "function", "function": {...}}, ...]; raise ApiError (400).

    The same name may come twice, as for Ollama; a call is then one of either.
    """
    if len(values) > MAX_TOOLS:
        raise bad_request(f"tools holds {len(values)} entries; leave out all but {MAX_TOOLS}")
    return [_tool(value, f"tools[{number}]") for number, value in enumerate(values)]


def _tool(value: Any, where: str) -> Tool:
    if not isinstance(value, dict):
        raise bad_request(f"{where} must be an object")
    kind, function = value.get("type"), value.get("function")
    if kind not in (None, "", "function"):
        raise bad_request(f'{where}.type must be "function"')
    if not isinstance(function, dict):
        raise bad_request(f"{where}.function must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request(f"{where}.function.name must have 1 to 128 letters, digits and characters of _-.:/@")
    where = f"tool {shown(name, 64)!r}"
    if not isinstance(function.get("description"), str | None):
        raise bad_request(f"{where}: description must be a string")
    return Tool(name, _parameters(function.get("parameters"), where), value)


def _parameters(schema: Any, where: str) -> dict[str, Any]:
    """Return the schema of a tool's arguments; raise ApiError (400)."""
    if schema is None or schema == {}:
        return {}
    try:
        parameters: dict[str, Any] = checked(schema)
        if parameters.get("type", "object") != "object":
            raise SchemaError('parameters.type must be "object"')
    except SchemaError as e:
        raise bad_request(f"{where}: {e}") from None
    size = len(_text(parameters, where).encode(errors="replace"))
    if size > MAX_GRAMMAR_BYTES:
        raise bad_request(f"{where}: parameters have {size} bytes, but at most {MAX_GRAMMAR_BYTES} are read")
    return parameters


def _text(schema: Any, where: str) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise bad_request(f"{where}: parameters are nested too deeply; flatten them") from None
    except ValueError:
        raise bad_request(f"{where}: parameters hold a number beyond all bounds; use a smaller one") from None
