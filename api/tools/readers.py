"""Read calls in the syntax of each family, a character at a time.

A reader is a generator: it is sent each character behind the text that opened it. It yields None while nothing is
settled; a list of calls, perhaps empty, where all up to here belongs to these calls. It returns with the last
character of its syntax, and raises NotACall for one that does not belong to it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

from ollampi.api.tools.calls import CALL_KEYS, NAME_KEYS, ToolCall, arguments_of, call_of, json_value
from ollampi.api.tools.definitions import Tool
from ollampi.api.tools.json_scan import MAX_DEPTH, JsonScan, NotACall
from ollampi.api.tools.literals import Literals
from ollampi.api.tools.typed import typed

_T = TypeVar("_T")
Reading = Generator[list[ToolCall] | None, str, _T]
Tools = Mapping[str, Tool]
Reader = Callable[[Tools], Reading[None]]

MAX_KEY_CHARS = 256
DEEPSEEK_SEPARATOR = "<\uff5ctool\u2581sep\uff5c>"
DEEPSEEK_END = "<\uff5ctool\u2581call\u2581end\uff5c>"
DEEPSEEK_LAST = "<\uff5ctool\u2581calls\u2581end\uff5c>"
_BRACKETS = {"{": "}", "[": "]", "(": ")"}


def json_calls(
    tools: Tools, closer: str = "", first: str = "", strict: bool = False, python: bool = False
) -> Reading[None]:
    """Read one object, several of them, or an array, and what closes them.

    first: a character of it that was read already; strict: objects must hold arguments; python: calls may also be
    written as name(key=value, ...).
    """
    char = first or (yield from _solid())
    listed = char == "["
    if listed:
        char = yield from _solid()
    while True:
        if python and char.isidentifier():
            call = yield from _python_call(tools, char)
        else:
            text = yield from _object(char, lambda key, value: _check(tools, key, value))
            call = call_of(json_value(text), tools, strict)
        char, listed = yield from _behind(call, listed)
        if char != "{" and not (python and char.isidentifier() and (listed or closer)):
            return (yield from _literal(closer, char))


def function_call(tools: Tools, closer: str = "") -> Reading[None]:
    """Read what stands behind "<function=": a name, then JSON (Llama 3), or parameters in tags (Qwen3-Coder)."""
    name, _ = yield from _name(tools, ">")
    char = yield from _solid()
    if char == "{":
        arguments = arguments_of(json_value((yield from _object(char))))
        yield from _literal("</function>", (yield from _solid((yield [ToolCall(name, arguments)]))))
        char = yield from _solid((yield []))
    else:
        arguments = yield from _parameters(tools[name], char)
        char = yield from _solid((yield [ToolCall(name, arguments)]))
    yield from _literal(closer, char)


def tagged_call(tools: Tools) -> Reading[None]:
    """Read what stands behind <tool_call>: JSON (Hermes, Qwen 2.5 and 3), or Qwen3-Coder's tags."""
    char = yield from _solid()
    if char in "{[":
        return (yield from json_calls(tools, "</tool_call>", char))
    yield from _literal("<function=", char)
    return (yield from function_call(tools, "</tool_call>"))


def mistral_call(tools: Tools) -> Reading[None]:
    """Read what stands behind [TOOL_CALLS]: JSON, or a name, perhaps an id, and arguments."""
    char = yield from _solid()
    if char in "{[":
        return (yield from json_calls(tools, "", char))
    name, char = yield from _name(tools, "[{", char)
    if char == "[":
        char = yield None
        if char == "C":
            yield from _literal("CALL_ID]", char)
            yield from _until("[", MAX_KEY_CHARS)
            char = yield None
        yield from _literal("ARGS]", char)
        char = yield from _solid()
    yield [ToolCall(name, arguments_of(json_value((yield from _object(char)))))]
    raise NotACall


def gemma_call(tools: Tools, closer: str, mark: str) -> Reading[None]:
    """Read call:name{key:value, ...}, where strings stand between two marks."""
    yield from _literal("call:")
    name, _ = yield from _name(tools, "{")
    text = yield from _balanced("{", (mark,))
    call = ToolCall(name, Literals(text, (mark,)).arguments(":", "}"))
    yield from _literal(closer, (yield from _solid((yield [call]))))


def deepseek_call(tools: Tools, before: str = "") -> Reading[None]:
    """Read name, separator, JSON (V3.1), or a kind, separator, name, JSON in a fence (V3 and R1), and the ends.

    before: what must come first.
    """
    if before:
        yield from _literal(before, (yield from _solid()))
    name = yield from _until(DEEPSEEK_SEPARATOR, MAX_KEY_CHARS)
    if name not in tools:
        name = yield from _until("\n", MAX_KEY_CHARS)
        yield from _literal("```json")
    if name not in tools:
        raise NotACall
    text = yield from _object((yield from _solid()))
    char = yield from _solid((yield [ToolCall(name, arguments_of(json_value(text)))]))
    if char == "`":
        yield from _literal("```", char)
        char = yield from _solid((yield []))
    yield from _literal(DEEPSEEK_END, char)
    yield from _literal(DEEPSEEK_LAST, (yield from _solid((yield []))))


def _check(tools: Tools, key: str, value: str | None) -> None:
    """Refuse keys that are not those of a call, and names that are no tool's."""
    unknown = value is not None and key in NAME_KEYS and value not in tools and "\\" not in value
    if key not in CALL_KEYS or unknown:
        raise NotACall


def _python_call(tools: Tools, first: str) -> Reading[ToolCall]:
    name, _ = yield from _name(tools, "(", first)
    text = yield from _balanced("(")
    return ToolCall(name, Literals(text).arguments("=", ")"))


def _solid(char: str = " ") -> Reading[str]:
    """Return the first character that is not blank, `char` or one behind it."""
    while char.isspace():
        char = yield None
    return char


def _literal(text: str, first: str = "") -> Reading[None]:
    """Read a text, whose first character may have been read already; an empty one can only be followed by others."""
    if not text:
        raise NotACall
    for expected in text:
        char = first or (yield None)
        first = ""
        if char != expected:
            raise NotACall


def _until(end: str, at_most: int | None = None) -> Reading[str]:
    """Return what stands before a text, which is read too."""
    chars: list[str] = []
    while not (chars and chars[-1] == end[-1] and "".join(chars[-len(end) :]) == end):
        if len(chars) == at_most:
            raise NotACall
        chars.append((yield None))
    return "".join(chars[: -len(end)])


def _name(tools: Tools, ends: str, first: str = "") -> Reading[tuple[str, str]]:
    """Return the name of a tool and the character behind it, one of `ends`."""
    name, char = "", first or (yield None)
    while char not in ends:
        name += char
        if not any(known.startswith(name) for known in tools):
            raise NotACall
        char = yield None
    if name not in tools:
        raise NotACall
    return name, char


def _object(first: str, check: Callable[[str, str | None], None] | None = None) -> Reading[str]:
    """Return the text of a JSON object."""
    scan = JsonScan(check)
    ended = scan.take(first)
    while not ended:
        ended = scan.take((yield None))
    return scan.text


def _balanced(opening: str, marks: tuple[str, ...] = ()) -> Reading[str]:
    """Return what stands behind a bracket up to the one that closes it; brackets in strings do not count."""
    chars: list[str] = []
    closers = [_BRACKETS[opening]]
    quote, begun = "", 0
    while closers:
        char = yield None
        chars.append(char)
        if quote:
            if char == "\\" and len(quote) == 1:
                chars.append((yield None))
            elif len(chars) - begun >= len(quote) and "".join(chars[-len(quote) :]) == quote:
                quote = ""
        elif char in "\"'" and not _in_mark(chars, marks):
            quote, begun = char, len(chars)
        elif char in _BRACKETS and len(closers) < MAX_DEPTH:
            closers.append(_BRACKETS[char])
        elif char in "]})([{":
            if closers.pop() != char:
                raise NotACall
        else:
            quote = next((mark for mark in marks if "".join(chars[-len(mark) :]) == mark), "")
            begun = len(chars)
    return "".join(chars)


def _in_mark(chars: list[str], marks: tuple[str, ...]) -> bool:
    """Return whether the quote that ends a text belongs to a mark, as in Gemma 4's."""
    ends = [mark[: mark.index(chars[-1]) + 1] for mark in marks if chars[-1] in mark]
    return any("".join(chars[-len(end) :]) == end for end in ends)


def _behind(call: ToolCall, listed: bool) -> Reading[tuple[str, bool]]:
    """Give out a call; return the first character of what follows, and whether that is still within the array."""
    char = yield [call]
    while char.isspace() or char in ",;":  # Llama separates calls by semicolons
        char = yield None
    if listed and char == "]":
        return (yield from _solid((yield []))), False
    return char, listed


def _parameters(tool: Tool, char: str) -> Reading[dict[str, Any]]:
    """Return the arguments that stand in tags, up to </function>."""
    arguments: dict[str, Any] = {}
    while True:
        yield from _literal("<", char)
        char = yield None
        if char == "/":
            yield from _literal("/function>", char)
            return arguments
        yield from _literal("parameter=", char)
        key = yield from _until(">", MAX_KEY_CHARS)
        arguments[key] = typed((yield from _until("</parameter>")), key, tool.parameters)
        char = yield from _solid()
