"""Say what the body of /v1/responses holds, as far as it has an effect; what else clients send is ignored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from ollampi.api.wires.body import MAX_OBJECTS, Body
from ollampi.api.wires.openai_bodies import ImageUrl, Limit, Reasoning, as_url
from ollampi.api.wires.parts import FORMATS, as_parts, needs, one_of

_PARTS: dict[str, Any] = {
    "type": ["string", "array"],
    "items": {"type": "object"},
    "description": "a text, or a list of parts",
}
_ITEMS = _PARTS | {"minLength": 1, "minItems": 1, "description": "a text, or a list of items"}
_CHOICE = {"type": ["string", "object"], "description": "none, auto, required, or {type: function, name}"}


def as_items(value: Any) -> Any:
    """Return a text as a list of one message of the user's; anything else is left for pydantic to check."""
    if not isinstance(value, str):
        return value
    return [{"role": "user", "content": value}] if value else []


class InputPart(Body):
    """A part of a message, of a summary or of a result: input_text, output_text, input_image and the like."""

    type: str
    text: str = ""
    refusal: str = ""
    image_url: Annotated[ImageUrl | None, BeforeValidator(as_url)] = None


Parts = Annotated[list[InputPart], BeforeValidator(as_parts), Field(max_length=MAX_OBJECTS), WithJsonSchema(_PARTS)]


class Item(Body):
    """One item of the input: message, function_call, function_call_output or reasoning."""

    type: str = "message"
    role: str = ""
    content: Parts = []
    summary: Parts = []
    output: Parts = []
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class Format(Body):
    """What form the answer must have: text, json_object or json_schema."""

    type: Annotated[str, one_of(*FORMATS)] = "text"
    name: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class TextSettings(Body):
    """How the text of the answer must be."""

    format: Format = Format()


class FunctionTool(Body):
    """A tool; only those of type function can be called."""

    type: str = "function"
    name: str = ""
    description: str = ""
    parameters: dict[str, Any] | None = None


class ResponsesBody(Body):
    """POST /v1/responses; nothing is stored, so previous_response_id, conversation and background are refused."""

    model_config = needs("model", "input")

    model: str = ""
    input: Annotated[list[Item], BeforeValidator(as_items), Field(max_length=MAX_OBJECTS), WithJsonSchema(_ITEMS)] = []
    instructions: str = ""
    max_output_tokens: Limit | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    reasoning: Reasoning = Reasoning()
    text: TextSettings = TextSettings()
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_OBJECTS)] = []
    tool_choice: Annotated[Any, WithJsonSchema(_CHOICE)] = None
    parallel_tool_calls: bool = True
    truncation: Annotated[str, one_of("auto", "disabled")] = "disabled"
    stream: bool = False
    metadata: dict[str, Any] = {}
    previous_response_id: str = ""
    conversation: Any = None
    background: bool = False
