"""Write the grammar of an answer that must call tools, in the syntax of the model's family."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

from ollampi.api.errors import bad_request
from ollampi.api.formats import MAX_GRAMMAR_BYTES
from ollampi.api.tools.argument_rules import Rules
from ollampi.api.tools.definitions import Tool
from ollampi.api.tools.dialects import Dialect, Frame
from ollampi.mpiruntime.request import Grammar

MAX_CALLS = 16  # of an answer that must call: a small model may never come to an end by itself


def tool_grammar(
    dialect: Dialect,
    tools: Sequence[Tool],
    choice: str,
    parallel: bool,
    token_ids: Callable[[str], int | None],
) -> Grammar:
    """Return the grammar of one call, or with `parallel` of one or more; raise ApiError (400).

    choice: "required" for any of the tools, else the name of the one to call; token_ids: the id of a special token by
    its text, None for what is no special token and so stands in the answer as plain text.
    """
    wanted = [tool for tool in tools if choice == "required" or tool.name == choice]
    if not wanted:
        known = ", ".join(tool.name for tool in tools[:20]) or "none"
        raise bad_request(f"tool_choice names {choice[:64]!r}, but the tools are: {known}")
    writer = _Writer(dialect.special, token_ids)
    frames = [dialect.frame, *([dialect.json_frame] if dialect.json_frame else [])]
    rules = Rules(writer.text)
    calls: dict[tuple[str, str, str], list[str]] = {}  # by what stands around them
    for tool in wanted:
        frame, arguments = _arguments(rules, frames, tool)
        before = writer.with_id(frame.before.replace("NAME", tool.name), rules)
        call = rules.add(" ".join((*before, arguments, *writer.text(frame.after))))
        calls.setdefault((frame.begin, frame.between, frame.end), []).append(call)
    starts = [_answer(around, rules.add(" | ".join(found)), parallel, writer) for around, found in calls.items()]
    text = "\n".join([f"start: {' | '.join(starts)}", *rules.lines, ""])
    if len(text.encode(errors="replace")) > MAX_GRAMMAR_BYTES:
        raise bad_request(
            f"the tools that may be called have schemas of more than {MAX_GRAMMAR_BYTES} bytes together; name one of"
            " them in tool_choice, or make them smaller"
        )
    return Grammar("lark", text)


def _arguments(rules: Rules, frames: Iterable[Frame], tool: Tool) -> tuple[Frame, str]:
    """Return the first frame that can hold a tool's arguments, with the rule for these; the last one holds any."""
    for frame in frames:
        rule = rules.arguments(tool, frame)
        if rule is not None:
            return frame, rule
    raise bad_request(f"the schema of tool {tool.name!r} cannot be written in this model's syntax; flatten it")


def _answer(around: tuple[str, str, str], call: str, parallel: bool, writer: _Writer) -> str:
    """Return the terms of a whole answer, of one call or of several."""
    begin, between, end = around
    more = [f"({' '.join((*writer.text(between), call))}){{0,{MAX_CALLS - 1}}}"] if parallel else []
    return " ".join((*writer.text(begin), call, *more, *writer.text(end)))


class _Writer:
    """Writes plain text and special tokens for llguidance."""

    def __init__(self, special: tuple[str, ...], token_ids: Callable[[str], int | None]) -> None:
        self._ids = {text: number for text in special if (number := token_ids(text)) is not None}
        self._split = re.compile(f"({'|'.join(map(re.escape, self._ids))})") if self._ids else None

    def text(self, text: str) -> list[str]:
        """Return the terms of a text."""
        parts = self._split.split(text) if self._split else [text]
        return [f"<[{self._ids[part]}]>" if part in self._ids else json.dumps(part) for part in parts if part]

    def with_id(self, text: str, rules: Rules) -> list[str]:
        """Return the terms of a text with the rule for an id in its place, if it has one."""
        head, mark, tail = text.partition("[CALL_ID]ID")
        if not mark:
            return self.text(text)
        return [*self.text(head + "[CALL_ID]"), rules.add("/[a-zA-Z0-9]{9}/"), *self.text(tail)]
