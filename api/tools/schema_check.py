"""Say what makes no sense in a JSON schema, before a prompt or a grammar is made of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100  # as for `format`
TYPES = frozenset(("string", "number", "integer", "boolean", "object", "array", "null"))
# Patterns are ECMAScript's, which Python cannot compile all; these complaints say nothing against one.
_OTHER_DIALECT = ("bad escape", "unknown extension", "look-behind", "bad character in group name", "missing <")


class SchemaError(Exception):
    """What is wrong with a schema, as a clause that begins with the place."""


def checked(schema: Any, where: str = "parameters", depth: int = 0) -> Any:
    """Return a schema without keywords that are null, which some clients write for absent ones.

    Raise SchemaError where one is of a wrong type; unknown keywords are let pass.
    """
    if isinstance(schema, bool) and depth:
        return schema
    if not isinstance(schema, dict):
        raise SchemaError(f"{where} must be an object")
    if depth > MAX_DEPTH:
        raise SchemaError(f"parameters are nested deeper than {MAX_DEPTH} levels; flatten them")
    kept = {key: value for key, value in schema.items() if value is not None or key in ("const", "default")}
    return {key: _keyword(key, value, f"{where}.{key[:40]}", depth + 1) for key, value in kept.items()}


def _keyword(key: str, value: Any, where: str, depth: int) -> Any:
    """Return the value of one keyword, checked."""
    if key in _SCHEMAS:
        if not isinstance(value, dict):
            raise SchemaError(f"{where} must be an object")
        return {name: checked(part, f"{where}.{name[:40]}", depth) for name, part in value.items()}
    if key in _LISTS or (key == "items" and isinstance(value, list)):
        _list(value, where)
        return [checked(part, f"{where}[{number}]", depth) for number, part in enumerate(value)]
    if key in _NESTED:
        return checked(value, where, depth)
    if key in _CHECKS:
        _CHECKS[key](value, where)
    return value


def _type(value: Any, where: str) -> None:
    names = value if isinstance(value, list) and value else [value]
    if not all(isinstance(name, str) and name in TYPES for name in names):
        raise SchemaError(f"{where} must be one of {', '.join(sorted(TYPES))}, or a list of them")


def _list(value: Any, where: str) -> None:
    if not isinstance(value, list):
        raise SchemaError(f"{where} must be an array")


def _names(value: Any, where: str) -> None:
    _list(value, where)
    if not all(isinstance(name, str) for name in value):
        raise SchemaError(f"{where} must hold strings")


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise SchemaError(f"{where} must be a string")


def _count(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value // 1:
        raise SchemaError(f"{where} must be a whole number that is not negative")


def _number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaError(f"{where} must be a number")


def _bound(value: Any, where: str) -> None:
    """Check a limit that is excluded: a number, or as up to draft 4 a boolean."""
    if not isinstance(value, bool):
        _number(value, where)


def _pattern(value: Any, where: str) -> None:
    _text(value, where)
    try:
        re.compile(value)
    except re.error as e:
        if not e.msg.startswith(_OTHER_DIALECT):
            raise SchemaError(f"{where} is no regular expression: {e.msg}") from None
    except (RecursionError, OverflowError):
        raise SchemaError(f"{where} is too large a regular expression; make it smaller") from None
    except FutureWarning:  # where warnings are errors
        return


_SCHEMAS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
_LISTS = frozenset(("anyOf", "allOf", "oneOf", "prefixItems"))
_NESTED = frozenset(("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"))
_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "type": _type,
    "enum": _list,
    "required": _names,
    "pattern": _pattern,
    **dict.fromkeys(("$ref", "format", "description", "title"), _text),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _count),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), _number),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), _bound),
}
