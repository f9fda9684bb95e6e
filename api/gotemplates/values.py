"""The values of Go's templates: what counts as empty, how each is written, and as which JSON.

Texts, booleans, None (nil), lists and dicts stand for themselves. An int is an int; a number that came as JSON is a
float, as in Go. How encoding/json and fmt write them is written in the documentation of these packages.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

from ollampi.api.gotemplates.failure import failure

NO_VALUE = "<no value>"
_EXACT = 1 << 53
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class Record:
    """A struct of Ollama's: its fields by name, and its JSON form, as which it is written."""

    def __init__(self, fields: dict[str, Any], form: dict[str, Any] | None = None) -> None:
        self.fields = fields
        self.form = fields if form is None else form


class JsonMap(dict[str, Any]):
    """A map that is written as JSON: the arguments of a call, the properties of parameters."""


class JsonList(list[Any]):
    """A list that is written as JSON: the tools."""


class Kinds(list[str]):
    """The type of a property, or several."""


def number_from_json(value: Any) -> Any:
    """Return a JSON value whose whole numbers are floats, as Go decodes them, but for those that no float holds."""
    if type(value) is int:
        return float(value) if abs(value) <= _EXACT else value
    if isinstance(value, list):
        return [number_from_json(item) for item in value]
    if isinstance(value, dict):
        return {key: number_from_json(item) for key, item in value.items()}
    return value


def truth(value: object) -> bool:
    """Return whether a value counts as true: structs always, others where they are not empty or zero."""
    return isinstance(value, Record) or bool(value)


def below(value: object, name: str) -> Any:
    """Return what `value` holds under a name; None where a map has no such key; raise ApiError elsewhere."""
    if isinstance(value, dict):
        return value.get(name)
    if isinstance(value, Record):
        if name in value.fields:
            return value.fields[name]
        raise failure(f"can't evaluate field {name}; known are {', '.join(value.fields)}")
    raise failure(f"can't evaluate field {name} of {described(value)}")


def described(value: object) -> str:
    """Return a value's type, for messages."""
    if value is None:
        return "nil"
    names = {str: "a string", bool: "a bool", int: "an int", float: "a number", Record: "a struct"}
    return names.get(type(value)) or ("a list" if isinstance(value, list) else "a map")


def written(value: object, nil: str = NO_VALUE) -> str:
    """Return a value as an action writes it; `nil` stands for None."""
    if isinstance(value, str):
        return value
    if value is None:
        return nil
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _shortest(value)
    if isinstance(value, Record | JsonMap | JsonList):
        return encoded(value)
    if isinstance(value, Kinds) and len(value) < 2:
        return "".join(value)
    if isinstance(value, list):
        return f"[{' '.join(written(item, '<nil>') for item in value)}]"
    if isinstance(value, dict):
        pairs = (f"{key}:{written(item, '<nil>')}" for key, item in sorted(value.items()))
        return f"map[{' '.join(pairs)}]"
    return str(value)


def encoded(value: object) -> str:
    """Return a value as compact JSON: keys of maps in order, <, > and & escaped."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).translate(_ESCAPES)
    if isinstance(value, Record):
        return f"{{{','.join(f'{encoded(key)}:{encoded(item)}' for key, item in value.form.items())}}}"
    if isinstance(value, dict):
        return f"{{{','.join(f'{encoded(key)}:{encoded(item)}' for key, item in sorted(value.items()))}}}"
    if isinstance(value, Kinds) and len(value) == 1:
        return encoded(value[0])
    if isinstance(value, list):
        return f"[{','.join(map(encoded, value))}]"
    if isinstance(value, float):
        return _plain(value)
    return json.dumps(value)


def _plain(value: float) -> str:
    """Return a float as encoding/json writes it: with an exponent only below 1e-6 and from 1e21 on."""
    text = repr(value)
    if "e" not in text and value != 0:
        return text.removesuffix(".0")
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        text = format(Decimal(repr(value)), "f")
        return text[:-2] if text.endswith(".0") else text
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa.removesuffix('.0')}e{exponent[0]}{exponent[1:].lstrip('0')}"


def _shortest(value: float) -> str:
    """Return a float as fmt writes it: with an exponent below 1e-4 and from 1e6 on."""
    if not math.isfinite(value):
        return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN")
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return _plain(value)
    exact = Decimal(repr(value))
    exponent = exact.adjusted()
    digits = "".join(map(str, exact.normalize().as_tuple().digits))
    mantissa = f"{digits[0]}.{digits[1:]}" if len(digits) > 1 else digits
    return f"{'-' if value < 0 else ''}{mantissa}e{exponent:+03d}"
