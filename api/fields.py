"""Read typed fields from a decoded JSON object; null counts as absent, as it does for Ollama."""

from __future__ import annotations

from typing import Any

from ollampi.api.errors import ApiError, bad_request

MAX_OBJECTS = 10_000  # in one array; more messages than that fit no context

_KINDS = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


class Fields:
    """A JSON object whose fields are read with a type; a wrong type raises ApiError (400)."""

    def __init__(self, values: dict[str, Any], where: str = "") -> None:
        self.values = values
        self._where = where

    def text(self, name: str, default: str = "") -> str:
        """Return a string field."""
        return default if self._absent(name) else str(self._typed(name, str))

    def flag(self, name: str, default: bool) -> bool:
        """Return a boolean field."""
        return default if self._absent(name) else bool(self._typed(name, bool))

    def integer(self, name: str, default: int) -> int:
        """Return an integer field; fractions and booleans are refused."""
        if self._absent(name):
            return default
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "integer")
        return value

    def items(self, name: str) -> list[Any]:
        """Return an array field, empty where absent."""
        values: list[Any] = [] if self._absent(name) else self._typed(name, list)
        return values

    def integers(self, name: str, at_most: int) -> list[int]:
        """Return an array of integers, empty where absent."""
        values = self._bounded(name, at_most)
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise self._wrong(name, "array of integers")
        return values

    def object(self, name: str) -> dict[str, Any]:
        """Return an object field, empty where absent."""
        values: dict[str, Any] = {} if self._absent(name) else self._typed(name, dict)
        return values

    def objects(self, name: str) -> list[Fields]:
        """Return an array of objects, empty where absent."""
        values = self._bounded(name, MAX_OBJECTS)
        if not all(isinstance(value, dict) for value in values):
            raise self._wrong(name, "array of objects")
        return [Fields(value, f"{self._where}{name}[].") for value in values]

    def _bounded(self, name: str, at_most: int) -> list[Any]:
        """Return an array field whose length is checked before anything looks at its entries."""
        values = self.items(name)
        if len(values) > at_most:
            raise bad_request(f'"{self._where}{name}" holds {len(values)} entries; leave out all but {at_most}')
        return values

    def _absent(self, name: str) -> bool:
        return self.values.get(name) is None

    def _typed(self, name: str, kind: type) -> Any:
        value = self.values[name]
        if not isinstance(value, kind):
            raise self._wrong(name, _KINDS[kind])
        return value

    def _wrong(self, name: str, kind: str) -> ApiError:
        got = _KINDS.get(type(self.values[name]), "value")
        return bad_request(f'json: field "{self._where}{name}" must be of type {kind}, not {got}')
