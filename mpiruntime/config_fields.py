"""Take values out of a config.json with their types checked."""

from __future__ import annotations

from typing import Any, TypeVar

from ollampi.mpiruntime.errors import ModelError

N = TypeVar("N", int, float)

_LONGEST_LIST = 1 << 16


class Fields:
    """The values of a config; `source` names them in errors.

    A value that is null counts as missing, as it does in transformers.
    """

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def number(self, key: str, kind: type[N], default: N | None = None) -> N:
        """Return a positive number; raise ModelError where it is missing, of another type or not positive."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self.source}: {key} is missing; it must be a positive {kind.__name__}")
            return default
        return kind(self._positive(key, value, kind))

    def bounded(self, key: str, most: int) -> int:
        """Return a positive number that is at most `most`; raise ModelError where it is something else."""
        value = self.number(key, int)
        if value > most:
            raise self.wrong(key, f"at most {most} is supported")
        return value

    def optional(self, key: str, kind: type[N]) -> N | None:
        """Return a positive number, or None where there is none; raise ModelError where it is something else."""
        return None if self.values.get(key) is None else self.number(key, kind)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean; raise ModelError where it is something else."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"{self.source}: {key} is {value!r:.80}; it must be true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a string; raise ModelError where it is something else."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise ModelError(f"{self.source}: {key} is {value!r:.80}; it must be a string")
        return value

    def map(self, key: str) -> Fields | None:
        """Return a nested map, or None where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise ModelError(f"{self.source}: {key} is {value!r:.80}; it must be an object")
        return None if value is None else Fields(value, f"{self.source}: {key}")

    def items(self, key: str) -> list[Any] | None:
        """Return a list of at most _LONGEST_LIST items, or None where there is none."""
        value = self.values.get(key)
        if value is not None and (not isinstance(value, list) or len(value) > _LONGEST_LIST):
            raise ModelError(f"{self.source}: {key} is {value!r:.80}; it must be a list of at most {_LONGEST_LIST}")
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """Return a list of `count` positive numbers; raise ModelError where it is something else."""
        values = self.items(key)
        if values is None or len(values) != count:
            raise ModelError(f"{self.source}: {key} must be a list of {count} positive numbers, not {values!r:.80}")
        return tuple(float(self._positive(key, value, float)) for value in values)

    def wrong(self, key: str, must: str) -> ModelError:
        """Return the error for a value that something else forbids."""
        return ModelError(f"{self.source}: {key} is {self.values.get(key)!r:.80}; {must}")

    def _positive(self, key: str, value: object, kind: type[N]) -> int | float:
        allowed = (int, float) if kind is float else (int,)
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < 2**40:
            raise ModelError(f"{self.source}: {key} is {value!r:.80}; it must be a positive {kind.__name__}")
        return value
