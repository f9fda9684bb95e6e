"""Read the JSON body of a request into a pydantic model; what does not fit is one sentence for the client."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ollampi.api.errors import ApiError, bad_request, shown

MAX_OBJECTS = 10_000  # in one array; more messages than that fit no context

_KINDS = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
_WANTED = {
    "bool_type": "boolean",
    "int_type": "integer",
    "int_from_float": "integer",
    "float_type": "number",
    "string_type": "string",
    "list_type": "array",
    "dict_type": "object",
    "model_type": "object",
    "model_attributes_type": "object",
}
B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """An object of a request: null counts as absent, no value is converted, and unknown fields are ignored.

    A body may forbid those: then they are named.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if isinstance(values, dict) and None in values.values():
            return {name: value for name, value in values.items() if value is not None}
        return values


def read_body(kind: type[B], values: dict[str, Any]) -> B:
    """Return decoded JSON as a body; raise ApiError (400) with the field and what it must be."""
    try:
        return kind.model_validate(values)
    except ValidationError as e:
        raise _refusal(e, kind) from None
    except RecursionError:
        raise bad_request("json: the body is nested too deeply") from None


def _refusal(failed: ValidationError, kind: type[Body]) -> ApiError:
    """Return what is wrong with the first field that does not fit, or which ones nobody knows."""
    errors = failed.errors(include_url=False, include_context=True)
    error = errors[0]
    field, context = shown(_path(error["loc"]), 100), error.get("ctx") or {}
    if error["type"] == "too_long":
        actual, most = context["actual_length"] or f"more than {context['max_length']}", context["max_length"]
        return bad_request(f'"{field}" holds {actual} entries; leave out all but {most}')
    if error["type"] == "extra_forbidden":
        unknown = [f'"{shown(_path(each["loc"]), 50)}"' for each in errors if each["type"] == "extra_forbidden"]
        names = f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}"
        return bad_request(f"json: unknown field {names}; use {', '.join(kind.model_fields)}")
    if error["type"] == "missing":
        return bad_request(f'json: field "{field}" is missing')
    if wanted := _WANTED.get(error["type"]):
        got = _KINDS.get(type(error["input"]), "value")
        return bad_request(f'json: field "{field}" must be of type {wanted}, not {got}')
    return bad_request(f'json: field "{field}": {shown(error["msg"]).removeprefix("Value error, ")}')


def _path(location: tuple[int | str, ...]) -> str:
    """Return where a field is, as messages[0].content."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
