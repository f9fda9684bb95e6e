"""Write the rules of a tool's arguments, as JSON or in a family's own syntax."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ollampi.api.tools.definitions import Tool
from ollampi.api.tools.dialects import Frame

# As for `format`: white space in one place is bounded, and oneOf is taken as anyOf.
_GUIDANCE = {"whitespace_pattern": r"[ \n\t\r]{1,24}", "coerce_one_of": True}
_NOTES = frozenset(("title", "description", "default", "examples", "$comment", "$schema", "deprecated", "strict"))
_PLAIN_OBJECT = _NOTES | {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_PLAIN_STRING = _NOTES | {"type", "minLength", "maxLength"}
_SCALARS = ("integer", "number", "boolean", "null")
_JSON_IN_TAGS = (*_SCALARS, "array", "object")
_WORD = re.compile(r"[^\W\d]\w*")
_FOREIGN = re.compile(r'"\$ref": "(?!#/(?:\$defs|definitions)/)')  # to what a rule of its own does not hold
_MOST_CHARS = 1000  # llguidance unrolls bounds
_TAG_END = "</parameter>"


class Rules:
    """The lines of a Lark grammar; equal rules are written once."""

    def __init__(self, text: Callable[[str], list[str]]) -> None:
        self._text = text
        self._names: dict[str, str] = {}
        self.lines: list[str] = []

    def add(self, body: str, attributes: str = "") -> str:
        """Return the name of a rule with this body."""
        known = attributes + body
        if known not in self._names:
            self._names[known] = f"r{len(self._names)}"
            self.lines.append(f"{self._names[known]}{attributes}: {body}")
        return self._names[known]

    def arguments(self, tool: Tool, frame: Frame) -> str | None:
        """Return the rule for a tool's arguments in a frame's style; None where it cannot hold them."""
        schema = {**tool.parameters, "type": "object"}
        if frame.style == "json":
            return self._json(schema, schema)
        properties = schema.get("properties", {})
        required = set(schema.get("required", ()))
        named = required <= set(properties) and all(map(_WORD.fullmatch, properties))
        if not named or not set(schema) <= _PLAIN_OBJECT or _FOREIGN.search(json.dumps(schema)):
            return None
        write = {"python": self._json, "tags": self._in_tags, "marks": self._in_marks(frame.mark)}[frame.style]
        values = {name: write(part, schema) for name, part in properties.items()}
        if None in values.values():
            return None
        if frame.style == "tags":
            return self._tags({name: str(value) for name, value in values.items()}, required)
        equals, opening, closing = "=()" if frame.style == "python" else ":{}"
        pairs = [(f"{json.dumps(name + equals)} {value}", name in required) for name, value in values.items()]
        joined = self._joined(pairs, ", " if frame.style == "python" else ",")
        return self.add(f"{json.dumps(opening)} {joined} {json.dumps(closing)}")

    def _json(self, schema: Any, root: dict[str, Any]) -> str:
        """Return the rule for JSON under a part of a schema."""
        if not isinstance(schema, dict):
            schema = {} if schema else {"not": {}}
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        return self.add(f"%json {json.dumps({'x-guidance': _GUIDANCE, **shared, **schema}, ensure_ascii=False)}")

    def _in_tags(self, schema: Any, root: dict[str, Any]) -> str | None:
        """Return the rule for a value and the end of its tag; strings stand there as they are."""
        if not isinstance(schema, dict):
            return None
        if _is_plain_string(schema):
            # What follows a line break and ends the tag is no part of the value, so the value must not end it before.
            text = f"/(?s:.{_bounds(schema)})\\n/ & ~/(?s:.*<\\/parameter>.*)/"
            return self.add(self._terminal(text), f"[suffix={json.dumps(_TAG_END)}]")
        end = json.dumps("\n" + _TAG_END)
        if _is_plain_enum(schema, _TAG_END):
            return self.add(f"({_alternatives(schema)}) {end}")
        if schema.get("type") not in _JSON_IN_TAGS or "enum" in schema or "const" in schema:
            return None
        return self.add(f"{self._json(schema, root)} {end}")

    def _tags(self, values: dict[str, str], required: set[str]) -> str:
        """Return the rule for all arguments, each in a tag."""
        terms = []
        for name, value in values.items():
            opening, behind = json.dumps(f"<parameter={name}>\n"), json.dumps("\n")
            terms.append(f"{opening} {value} {behind}" if name in required else f"({opening} {value} {behind})?")
        return self.add(" ".join(terms) or '""')

    def _in_marks(self, mark: str) -> Callable[[Any, dict[str, Any]], str | None]:
        """Return what gives the rule for a value whose strings stand between marks."""
        around = " ".join(self._text(mark))

        def rule(schema: Any, root: dict[str, Any]) -> str | None:
            """Return the rule for a value, None where it cannot be written so."""
            if not isinstance(schema, dict):
                return None
            if _is_plain_string(schema):
                text = self._terminal(f"/(?s:.{_bounds(schema)})/ & ~/(?s:.*{_regex(mark)}.*)/")
                if around.startswith("<["):  # a special token
                    return self.add(f"{around} {text} {around}")
                return self.add(f"{around} {self.add(text, f'[suffix={json.dumps(mark)}]')}")
            if _is_plain_enum(schema, mark):
                return self.add(f"{around} ({_alternatives(schema)}) {around}")
            if schema.get("type") == "array" and set(schema) <= _NOTES | {"type", "items"}:
                item = rule(schema.get("items"), root)
                return item and self.add(f'"[" ({item} ("," {item})*)? "]"')
            plain = schema.get("type") in _SCALARS and "enum" not in schema and "const" not in schema
            return self._json(schema, root) if plain else None

        return rule

    def _terminal(self, body: str) -> str:
        """Return the name of a terminal: what is one may use & and ~."""
        if body not in self._names:
            self._names[body] = f"T{len(self._names)}"
            self.lines.append(f"{self._names[body]}: {body}")
        return self._names[body]

    def _joined(self, pairs: list[tuple[str, bool]], between: str) -> str:
        """Return the rule for pairs in this order, each of them required or not, with a text between two."""
        first = behind = '""'  # what may come where no pair has been written yet, and where one has
        for pair, required in reversed(pairs):
            more = f"{json.dumps(between)} {pair} {behind}"
            alone = f"{pair} {behind}"
            first = self.add(alone if required else f"{alone} | {first}")
            behind = self.add(more if required else f"{more} | {behind}")
        return first


def _is_plain_string(schema: dict[str, Any]) -> bool:
    bounds = [schema.get(key, 0) for key in ("minLength", "maxLength")]
    return schema.get("type") == "string" and set(schema) <= _PLAIN_STRING and max(bounds) <= _MOST_CHARS


def _bounds(schema: dict[str, Any]) -> str:
    """Return how often a character may come in a string."""
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    return f"{{{least},{'' if most is None else int(most)}}}"


def _is_plain_enum(schema: dict[str, Any], end: str) -> bool:
    """Return whether a schema lists strings, none of which holds what ends them."""
    values = schema.get("enum")
    texts = bool(values) and all(isinstance(value, str) and end not in value for value in values or ())
    return texts and schema.get("type") == "string" and set(schema) <= _NOTES | {"type", "enum"}


def _alternatives(schema: dict[str, Any]) -> str:
    return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])


def _regex(text: str) -> str:
    return re.sub(r"([^\w<>])", r"\\\1", text)
