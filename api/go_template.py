"""Render the small part of Go's template language that /api/generate's `template` field needs.

Known: {{ .System }}, {{ .Prompt }}, {{ .Response }}, {{ if .X }} ... {{ else }} ... {{ end }}, comments, and the trim
markers {{- and -}}. Rendering ends at .Response, because there the model goes on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ollampi.api.errors import ApiError, shown

FIELDS = ("System", "Prompt", "Response", "Suffix")
MAX_DEPTH = 100
_TAG = re.compile(r"\{\{(-(?=\s))?\s*(.*?)\s*((?<=\s)-)?\}\}", re.DOTALL)


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


_Node = _Text | _Field | _If


class GoTemplate:
    """A parsed template; raise ApiError (500, as Ollama does) where it cannot be parsed."""

    def __init__(self, source: str) -> None:
        self._nodes: list[_Node] = []
        self._open: list[tuple[_If, list[_Node]]] = []  # the condition and the list that holds it
        target, position, trim = self._nodes, 0, False
        for tag in _TAG.finditer(source):
            text = source[position : tag.start()]
            target.append(_Text(_trimmed(text, trim, bool(tag[1]))))
            target = self._read(tag[2], target)
            position, trim = tag.end(), bool(tag[3])
        if "{{" in source[position:]:
            raise _error("unclosed action")
        if self._open:
            raise _error("unexpected EOF; close each {{ if }} with {{ end }}")
        target.append(_Text(_trimmed(source[position:], trim, False)))

    def render(self, **values: str) -> str:
        """Return the text up to .Response, with `values` in place of the fields."""
        pieces: list[str] = []
        _render(self._nodes, values, pieces)
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


def _known(name: str) -> str:
    if name not in FIELDS:
        raise _error(f"unknown field .{shown(name, 40)}; known are .{', .'.join(FIELDS)}")
    return name


def _trimmed(text: str, left: bool, right: bool) -> str:
    text = text.lstrip() if left else text
    return text.rstrip() if right else text


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
