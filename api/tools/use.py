"""Say which tools an answer may or must call, from a request's tools, tool_choice and parallel_tool_calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ollampi.api.errors import ApiError, bad_request
from ollampi.api.tools.definitions import Tool, tools_of
from ollampi.api.tools.dialects import Dialect
from ollampi.api.tools.forcing import tool_grammar
from ollampi.api.tools.splitter import ToolSplitter
from ollampi.mpiruntime.request import Grammar

AUTO, NONE, REQUIRED = "auto", "none", "required"
_CHOICE_TEXT = 'tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}'


@dataclass(frozen=True)
class ToolUse:
    """What an answer may call; choice is auto, required, or the name of the one that it must call."""

    tools: list[Tool]
    dialect: Dialect
    choice: str
    parallel: bool

    @property
    def values(self) -> list[dict[str, Any]]:
        """Return the tools as the client wrote them, for the prompt."""
        return [tool.values for tool in self.tools]

    def splitter(self) -> ToolSplitter:
        """Return what finds calls in a new answer."""
        return ToolSplitter(self.dialect, self.tools)

    def grammar(self, token_ids: Callable[[str], int | None]) -> Grammar | None:
        """Return what an answer must be, None where it need not call anything; raise ApiError (400)."""
        if self.choice == AUTO:
            return None
        return tool_grammar(self.dialect, self.tools, self.choice, self.parallel, token_ids)


def tool_use(
    tools: Sequence[Any], choice: object, parallel: bool, dialect: Dialect | None, model: str
) -> ToolUse | None:
    """Return the tools that an answer may call, None where there are none; raise ApiError (400).

    dialect: the model's, None for one that knows no tools; model: its full name.
    """
    wanted = _choice(choice)
    if not tools:
        if wanted not in (AUTO, NONE):
            raise bad_request(f"tool_choice is {wanted!r}, but the request has no tools")
        return None
    if dialect is None:
        raise bad_request(f"{model} does not support tools")
    checked = tools_of(tools)
    several = parallel and wanted in (AUTO, REQUIRED)  # a named tool is called once
    return None if wanted == NONE else ToolUse(checked, dialect, wanted, several)


def _choice(value: object) -> str:
    """Return auto, none, required or the name of a tool; raise ApiError (400)."""
    if value is None or value == "":
        return AUTO
    if isinstance(value, str):
        if value in (AUTO, NONE, REQUIRED):
            return value
        raise _wrong()
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name or name in (AUTO, NONE, REQUIRED):
        raise _wrong()
    return name


def _wrong() -> ApiError:
    return bad_request(_CHOICE_TEXT)
