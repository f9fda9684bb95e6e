"""Make the schemas of the OpenAPI document: bodies as they are read, answers, the errors of each wire."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ollampi.api.options import OPTIONS_MARK, options_schema
from ollampi.api.wires.body import Body
from ollampi.api.wires.wire import wire_of

JSON = dict[str, Any]
PLACE = "#/components/schemas/"

_STRING: JSON = {"type": "string"}
_ERRORS: dict[str, JSON] = {
    "ollama": {"properties": {"error": _STRING, "signin_url": _STRING}, "required": ["error"]},
    "openai": {
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": _STRING,
                    "type": _STRING,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
                "required": ["message", "type", "param", "code"],
            }
        },
        "required": ["error"],
    },
    "anthropic": {
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "properties": {"type": _STRING, "message": _STRING},
                "required": ["type", "message"],
            },
            "request_id": _STRING,
        },
        "required": ["type", "error", "request_id"],
    },
}
_REGISTRY_ERROR: JSON = {
    "type": "object",
    "properties": {"errors": {"type": "array", "items": {"type": "object"}}},
    "required": ["errors"],
}


class Components:
    """The named schemas of a document, collected while its operations are written."""

    def __init__(self) -> None:
        self.schemas: dict[str, JSON] = {}

    def of(self, kind: type[BaseModel]) -> JSON:
        """Return a reference to the schema of a body or an answer; raise ValueError where two share a name."""
        wire = _wire(kind)
        made = kind.model_json_schema(ref_template=f"{PLACE}{wire}{{model}}", mode="validation")
        for name, schema in (made.pop("$defs", {}) | {kind.__name__: made}).items():
            clean = self._body(schema) if issubclass(kind, Body) else _answer(schema)
            if self.schemas.setdefault(wire + name, clean) != clean:
                raise ValueError(f"two different bodies or answers are called {wire}{name}; rename one of them")
        return {"$ref": f"{PLACE}{wire}{kind.__name__}"}

    def error(self, path: str) -> JSON:
        """Return a reference to the schema of errors on the wire of a path."""
        name = f"{wire_of(path).name.capitalize()}Error"
        self.schemas[name] = {"type": "object", **_ERRORS[wire_of(path).name]}
        if path.startswith("/v2/"):
            self.schemas["RegistryError"] = {"anyOf": [{"$ref": PLACE + name}, _REGISTRY_ERROR]}
            name = "RegistryError"
        return {"$ref": PLACE + name}

    def _body(self, schema: JSON) -> JSON:
        """Return the schema of an object of a request: null counts as absent, but for what must be there."""
        required = schema.get("required", [])
        properties = {
            name: value if name in required else _or_null(value)
            for name, value in ((name, self._marked(value)) for name, value in schema.get("properties", {}).items())
        }
        return _untitled(schema) | {"properties": properties}

    def _marked(self, schema: JSON) -> JSON:
        """Return the schema of a field without what says nothing; options are described once."""
        if OPTIONS_MARK in schema:
            name = schema[OPTIONS_MARK]
            self.schemas[name] = options_schema(of_text=name == "Options")
            return {"$ref": PLACE + name}
        return {key: value for key, value in _untitled(schema).items() if key != "default" or value is not None}


def _wire(kind: type[BaseModel]) -> str:
    """Return what the names of schemas begin with: the wire of a body, as its module says; nothing for Ollama's."""
    wire = kind.__module__.rpartition(".")[2].partition("_")[0]
    return "" if wire in ("ollama", "manage") else wire.capitalize()


def _answer(schema: JSON) -> JSON:
    """Return the schema of an object of an answer; what is left out has no default."""
    properties = {name: _untitled(value) for name, value in schema.get("properties", {}).items()}
    for value in properties.values():
        value.pop("default", None)
    return _untitled(schema) | {"properties": properties}


def _or_null(schema: JSON) -> JSON:
    """Return a schema that takes null too."""
    if isinstance(kinds := schema.get("type"), str | list) and "enum" not in schema and "const" not in schema:
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return schema | {"type": kinds if "null" in kinds else [*kinds, "null"]}
    if isinstance(choices := schema.get("anyOf"), list):
        return schema if {"type": "null"} in choices else schema | {"anyOf": [*choices, {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}


def _untitled(schema: JSON) -> JSON:
    return {key: value for key, value in schema.items() if key != "title"}
