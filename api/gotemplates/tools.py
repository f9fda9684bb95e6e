"""The tools and messages of a request as templates see them.

Their fields, which of them JSON shows and in which order, and that what is no such field is left out, are those of
Ollama (api/types.go: Tool, ToolFunction, ToolProperty; template/template.go: what they become for templates).
"""

from __future__ import annotations

from typing import Any

from ollampi.api.gotemplates.values import JsonList, JsonMap, Kinds, Record, number_from_json

_TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def tool_records(tools: list[Any]) -> JsonList:
    """Return tools, which are JSON that nobody has checked, as records."""
    return JsonList(_tool(_object(tool)) for tool in tools)


def message_record(message: dict[str, Any]) -> Record:
    """Return a message, in the form that chat templates expect, as a record."""
    calls = message.get("tool_calls")
    fields = {
        "Role": _text(message, "role"),
        "Content": _text(message, "content"),
        "Thinking": _text(message, "thinking"),
        "Images": [],
        "ToolCalls": [_call(_object(call)) for call in calls] if isinstance(calls, list) else [],
        "ToolName": _text(message, "tool_name") or _text(message, "name"),
        "ToolCallID": _text(message, "tool_call_id"),
    }
    return Record(fields)


def typescript(value: object) -> str:
    """Return the TypeScript type of a property, "any" for whatever is none."""
    if not isinstance(value, Record) or "AnyOf" not in value.fields:
        return "any"
    if value.fields["AnyOf"]:
        return " | ".join(map(typescript, value.fields["AnyOf"]))
    return " | ".join(_TYPESCRIPT.get(kind, "any") for kind in value.fields["Type"]) or "any"


def _call(call: dict[str, Any]) -> Record:
    function = _object(call.get("function"))
    arguments, index = function.get("arguments"), function.get("index")
    fields = {
        "Index": index if type(index) is int else 0,
        "Name": _text(function, "name"),
        "Arguments": arguments if isinstance(arguments, str) else JsonMap(number_from_json(_object(arguments))),
    }
    inner = Record(fields, {"name": fields["Name"], "arguments": fields["Arguments"]})
    called = _text(call, "id")
    return Record({"ID": called, "Function": inner}, {**({"id": called} if called else {}), "function": inner})


def _tool(tool: dict[str, Any]) -> Record:
    fields = {
        "Type": _text(tool, "type"),
        "Items": number_from_json(tool.get("items")),
        "Function": _function(_object(tool.get("function"))),
    }
    return Record(fields, _form(fields, {"Type": "type", "Items": "items", "Function": "function"}, {"Items"}))


def _function(function: dict[str, Any]) -> Record:
    fields = {
        "Name": _text(function, "name"),
        "Description": _text(function, "description"),
        "Parameters": _parameters(_object(function.get("parameters"))),
    }
    return Record(fields, {name.lower(): value for name, value in fields.items()})


def _parameters(parameters: dict[str, Any]) -> Record:
    fields = {
        "Type": _text(parameters, "type"),
        "Defs": number_from_json(parameters.get("$defs")),
        "Items": number_from_json(parameters.get("items")),
        "Required": _texts(parameters.get("required")),
        "Properties": _properties(parameters.get("properties")),
    }
    names = {"Type": "type", "Defs": "$defs", "Items": "items", "Required": "required", "Properties": "properties"}
    return Record(fields, _form(fields, names, {"Defs", "Items", "Required"}))


def _properties(properties: object) -> JsonMap:
    return JsonMap({name: _property(_object(value)) for name, value in _object(properties).items()})


def _property(value: dict[str, Any]) -> Record:
    kinds, options = value.get("type"), value.get("anyOf")
    enum = value.get("enum")
    fields: dict[str, Any] = {
        "AnyOf": [_property(_object(option)) for option in options] if isinstance(options, list) else [],
        "Type": Kinds([kinds] if isinstance(kinds, str) else _texts(kinds)),
        "Items": number_from_json(value.get("items")),
        "Description": _text(value, "description"),
        "Enum": number_from_json(enum) if isinstance(enum, list) else [],
        "Properties": _properties(value.get("properties")),
        "Required": _texts(value.get("required")),
    }
    names = {name: name[0].lower() + name[1:] for name in fields}
    return Record(fields, _form(fields, names, set(fields)))


def _form(fields: dict[str, Any], names: dict[str, str], optional: set[str]) -> dict[str, Any]:
    """Return fields under their names in JSON, without the optional ones that are empty."""
    shown = {name: fields[name] for name in names if name not in optional or fields[name] not in (None, "", [], {})}
    return {names[name]: value for name, value in shown.items()}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    return value if isinstance(value, str) else ""


def _texts(values: object) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
