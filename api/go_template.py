"""Render the small part of Go's template language that /api/generate's `template` field needs.

Known: {{ .System }}, {{ .Prompt }}, {{ .Response }}, {{ if .X }} ... {{ else }} ... {{ end }}, comments, and the trim
markers {{- and -}}. Rendering ends at .Response, because there the model goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ollampi.api.errors import ApiError, shown

FIELDS = ("System", "Prompt", "Response", "Suffix")
MAX_CHARS = 1 << 16
MAX_DEPTH = 100
MAX_OUTPUT_CHARS = 32 << 20
_BLANKS = " \t\r\n"  # what Go trims
_LEFT_MARKS = tuple("-" + blank for blank in _BLANKS)
_RIGHT_MARKS = tuple(blank + "-" for blank in _BLANKS)
_COMMENT = re.compile(rf"\{{\{{(?:-[{_BLANKS}])?[{_BLANKS}]*/\*")


@dataclass
class _If:
    """A condition and what to render when its field is or is not empty."""

    name: str
    then: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)


@dataclass(frozen=True)
class _Text:
    text: str


@dataclass(frozen=True)
class _Field:
    name: str


@dataclass(frozen=True)
class _Tag:
    """What stands in braces from `start` to `end`, and on which sides it trims."""

    start: int
    end: int
    action: str
    trims_left: bool
    trims_right: bool


_Node = _Text | _Field | _If


class GoTemplate:
    """A parsed template; raise ApiError (500, as Ollama does) where it cannot be parsed."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_CHARS:
            raise _error(f"{len(source)} characters are over the limit of {MAX_CHARS}; shorten it")
        self._nodes: list[_Node] = []
        self._open: list[tuple[_If, list[_Node]]] = []  # the condition and the list that holds it
        target, position, trim = self._nodes, 0, False
        for tag in _tags(source):
            target.append(_Text(_trimmed(source[position : tag.start], trim, tag.trims_left)))
            target = self._read(tag.action, target)
            position, trim = tag.end, tag.trims_right
        if self._open:
            raise _error("unexpected EOF; close each {{ if }} with {{ end }}")
        target.append(_Text(_trimmed(source[position:], trim, False)))

    def render(self, **values: str) -> str:
        """Return the text up to .Response, `values` in place of the fields; raise ApiError where it is too long."""
        pieces: list[str] = []
        _render(self._nodes, values, pieces)
        if sum(map(len, pieces)) > MAX_OUTPUT_CHARS:  # a template may repeat a long prompt a thousand times
            raise _error(f"the result has more than {MAX_OUTPUT_CHARS} characters; shorten the template or the prompt")
        return "".join(pieces)

    def _read(self, action: str, target: list[_Node]) -> list[_Node]:
        """Take in one action; return the list that the following nodes belong to."""
        if action.startswith("/*") and action.endswith("*/"):
            return target
        if action == "end" and self._open:
            return self._open.pop()[1]
        if action == "else" and self._open:
            return self._open[-1][0].otherwise
        if found := re.fullmatch(r"if\s+\.(\w+)", action):
            branch = _If(_known(found[1]))
            target.append(branch)
            self._open.append((branch, target))
            if len(self._open) > MAX_DEPTH:
                raise _error(f"more than {MAX_DEPTH} nested conditions")
            return branch.then
        if found := re.fullmatch(r"\.(\w+)", action):
            target.append(_Field(_known(found[1])))
            return target
        raise _error(f'unexpected "{shown(action, 40)}"; use .System, .Prompt, .Response, if, else and end')


def _tags(source: str) -> Iterator[_Tag]:
    """Yield the tags of a template in order, in linear time; raise ApiError where one is not closed."""
    end = 0
    while (start := source.find("{{", end)) >= 0:
        comment = _COMMENT.match(source, start)  # it may hold braces
        inside = source.find("*/", comment.end()) if comment else start + 2
        close = source.find("}}", inside) if inside >= 0 else -1
        if close < 0:
            raise _error("unclosed action")
        end, body = close + 2, source[start + 2 : close]
        trims_left, trims_right = body.startswith(_LEFT_MARKS), body.endswith(_RIGHT_MARKS)
        action = body[2 if trims_left else 0 : len(body) - 2 if trims_right else len(body)].strip(_BLANKS)
        yield _Tag(start, end, action, trims_left, trims_right)


def _known(name: str) -> str:
    if name not in FIELDS:
        raise _error(f"unknown field .{shown(name, 40)}; known are .{', .'.join(FIELDS)}")
    return name


def _trimmed(text: str, left: bool, right: bool) -> str:
    text = text.lstrip(_BLANKS) if left else text
    return text.rstrip(_BLANKS) if right else text


def _render(nodes: list[_Node], values: dict[str, str], pieces: list[str]) -> bool:
    """Append the text of nodes; return False once .Response was met."""
    for node in nodes:
        if isinstance(node, _Text):
            pieces.append(node.text)
        elif isinstance(node, _If):
            if not _render(node.then if values.get(node.name) else node.otherwise, values, pieces):
                return False
        elif node.name == "Response":
            return False
        else:
            pieces.append(values.get(node.name, ""))
    return True


def _error(text: str) -> ApiError:
    return ApiError(500, f"template: {text}")
