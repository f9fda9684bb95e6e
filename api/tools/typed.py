"""Give the plain text of an argument the type that its tool's schema asks for."""

from __future__ import annotations

from typing import Any

from ollampi.api.tools.calls import whole_object
from ollampi.api.tools.json_scan import NotACall

_ALTERNATIVES = ("anyOf", "oneOf", "allOf")
_MAX_DEPTH = 20  # of references and alternatives
_WORDS = {"true": True, "false": False, "null": None, "none": None}  # templates write Python's words too


def typed(text: str, key: str, parameters: dict[str, Any]) -> Any:
    """Return the value of argument `key` that stands in a tag, without the line breaks around it.

    A text that does not fit its type, or of a key that the schema does not know, is a string, as it is for Qwen.
    """
    text = text.removeprefix("\n").removesuffix("\n")
    properties = parameters.get("properties") or {}
    kinds = _kinds(properties[key], parameters, 0) if key in properties else {"string"}
    if kinds == {"string"}:
        return text
    try:
        value = whole_object(f'{{"":{text.strip()}}}')[""]
    except NotACall:
        value = _WORDS.get(text.strip().lower(), text)
    return text if isinstance(value, str) or not _kind(value) & kinds else value


def _kinds(schema: Any, root: dict[str, Any], depth: int) -> set[str]:
    """Return the types that a schema allows, as far as it says so."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return set(_EVERY)
    if "type" in schema:
        return set(schema["type"]) if isinstance(schema["type"], list) else {schema["type"]}
    for key in ("enum", "const"):
        if key in schema:
            values = schema[key] if key == "enum" else [schema[key]]
            return {kind for value in values for kind in _kind(value)}
    if "$ref" in schema:
        return _kinds(_resolved(schema["$ref"], root), root, depth + 1)
    for key in _ALTERNATIVES:
        if key in schema:
            sets = [_kinds(part, root, depth + 1) for part in schema[key]]
            return set.intersection(*sets) if key == "allOf" and sets else set().union(*sets)
    return set(_EVERY)


def _resolved(reference: str, root: Any) -> Any:
    """Return the schema within `root` that a reference names, None where there is none."""
    for name in reference.removeprefix("#").strip("/").split("/"):
        if name and not isinstance(root, dict):
            return None
        root = root.get(name) if name else root
    return root


def _kind(value: Any) -> set[str]:
    """Return the types that a value has."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    named = {str: "string", list: "array", dict: "object", type(None): "null"}
    return {named[type(value)]}


_EVERY = frozenset(("string", "number", "integer", "boolean", "object", "array", "null"))
