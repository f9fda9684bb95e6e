"""The functions of Go's templates and those that Ollama adds, but for `and` and `or`, which look only as far as needed.

What they take and return is written in the documentation of text/template; in Ollama's template/template.go dates have
one form, whatever the arguments, and anything but a property has the TypeScript type "any".
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

from ollampi.api.gotemplates.failure import failure
from ollampi.api.gotemplates.printf import printf
from ollampi.api.gotemplates.tools import typescript
from ollampi.api.gotemplates.values import Record, described, encoded, truth, written

ANY = 1 << 16
ARITIES = {  # the fewest and the most arguments
    "and": (1, ANY),
    "currentDate": (0, ANY),
    "eq": (2, ANY),
    "ge": (2, 2),
    "gt": (2, 2),
    "index": (1, ANY),
    "json": (1, 1),
    "le": (2, 2),
    "len": (1, 1),
    "lt": (2, 2),
    "ne": (2, 2),
    "not": (1, 1),
    "or": (1, ANY),
    "print": (0, ANY),
    "printf": (1, ANY),
    "println": (0, ANY),
    "slice": (1, 4),
    "toTypeScriptType": (1, 1),
    "yesterdayDate": (0, ANY),
}
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def call(name: str, values: list[Any]) -> Any:
    """Return what a function makes of its arguments, whose number is right; raise ApiError."""
    if name in _ORDERS:
        if _kind(values[0]) != _kind(values[1]) or _kind(values[0]) not in ("a string", "an int", "a number"):
            raise _incomparable(values[0], values[1])
        return _ORDERS[name](values[0], values[1])
    return _FUNCTIONS[name](values)


def _kind(value: object) -> str:
    """Return the kind that comparisons go by; of what can only be nil or not, an empty one."""
    found = described(value)
    return "" if value is None or isinstance(value, list | dict | Record) else found


def _equal(values: list[Any]) -> bool:
    """Return whether the first argument is equal to one of the others."""
    return any(_same(values[0], other) for other in values[1:])


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return _is_nil(one) and _is_nil(other)
    if _kind(one) != _kind(other) or not _kind(one):
        raise _incomparable(one, other)
    return bool(one == other)


def _is_nil(value: object) -> bool:
    return value is None or (isinstance(value, list | dict) and not value)


def _incomparable(one: object, other: object) -> Exception:
    return failure(f"incompatible types for comparison: {described(one)} and {described(other)}")


def _length(values: list[Any]) -> int:
    """Return the length of a list or map, or of a text in bytes."""
    (value,) = values
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, list | dict):
        return len(value)
    raise failure(f"len of {described(value)}")


def _index(values: list[Any]) -> Any:
    """Return the item of a list or map under each of the keys, one below the other."""
    value, *keys = values
    for key in keys:
        if isinstance(value, dict) and isinstance(key, str):
            value = value.get(key)
        elif isinstance(value, list) and type(key) is int and 0 <= key < len(value):
            value = value[key]
        else:
            raise failure(f"cannot index {described(value)} with {written(key)[:40]!r}")
    return value


def _slice(values: list[Any]) -> Any:
    """Return the items of a list, or the bytes of a text, from the first number up to the second."""
    value, *bounds = values
    item = value.encode(errors="replace") if isinstance(value, str) else value
    if not isinstance(item, list | bytes) or len(bounds) > (2 if isinstance(value, str) else 3):
        raise failure(f"cannot slice {described(value)} by {len(bounds)} numbers")
    if any(type(bound) is not int for bound in bounds):
        raise failure("slice takes whole numbers")
    start, end = [*bounds, 0][0], [*bounds[1:2], len(item)][0]
    if not 0 <= start <= end <= len(item) or not all(end <= most <= len(item) for most in bounds[2:]):
        raise failure(f"slice from {start} to {end} is out of range for a length of {len(item)}")
    part = item[start:end]
    return part.decode(errors="replace") if isinstance(part, bytes) else part


def _print(values: list[Any]) -> str:
    """Return the arguments one behind the other, a blank between two that are no text."""
    parts: list[str] = []
    for place, value in enumerate(values):
        if place and not isinstance(value, str) and not isinstance(values[place - 1], str):
            parts.append(" ")
        parts.append(written(value, "<nil>"))
    return "".join(parts)


def _println(values: list[Any]) -> str:
    return " ".join(written(value, "<nil>") for value in values) + "\n"


_FUNCTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "currentDate": lambda values: date.today().isoformat(),
    "eq": _equal,
    "index": _index,
    "json": lambda values: encoded(values[0]),
    "len": _length,
    "ne": lambda values: not _same(values[0], values[1]),
    "not": lambda values: not truth(values[0]),
    "print": _print,
    "printf": lambda values: printf(values[0], values[1:]),
    "println": _println,
    "slice": _slice,
    "toTypeScriptType": lambda values: typescript(values[0]),
    "yesterdayDate": lambda values: (date.today() - timedelta(days=1)).isoformat(),
}
