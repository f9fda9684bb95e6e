"""Say what the bodies of Anthropic's routes hold, as far as it has an effect; what else clients send is ignored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from ollampi.api.wires.body import MAX_OBJECTS, Body
from ollampi.api.wires.parts import EFFORTS, FORMATS, as_parts, needs, one_of

_BLOCKS = {"type": ["string", "array"], "items": {"type": "object"}, "description": "a text, or a list of blocks"}


class Source(Body):
    """Where the bytes of an image are; only base64 is taken."""

    type: str
    media_type: str = ""
    data: str = ""


class InnerBlock(Body):
    """A block of what a tool answered: text or image."""

    type: str
    text: str = ""
    source: Source | None = None


def as_blocks(value: Any) -> Any:
    """Return a text, or a single block, as a list of one block; anything else is left for pydantic to check."""
    return [value] if isinstance(value, dict) else as_parts(value)


InnerBlocks = Annotated[
    list[InnerBlock], BeforeValidator(as_blocks), Field(max_length=MAX_OBJECTS), WithJsonSchema(_BLOCKS)
]


class Block(InnerBlock):
    """A block of a message: text, image, tool_use, tool_result, thinking and the like."""

    thinking: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}
    tool_use_id: str = ""
    content: InnerBlocks = []
    is_error: bool = False


Blocks = Annotated[list[Block], BeforeValidator(as_parts), Field(max_length=MAX_OBJECTS), WithJsonSchema(_BLOCKS)]


class AnthropicMessage(Body):
    """One message of a conversation; its role is user, assistant or system."""

    role: Annotated[str, one_of("user", "assistant", "system")]
    content: Blocks = []


class ClientTool(Body):
    """A tool of the client's."""

    type: str = "custom"
    name: str
    description: str = ""
    input_schema: dict[str, Any] | None = None


class ToolChoice(Body):
    """Whether tools must be called: auto, any, tool (which `name` names) or none."""

    type: Annotated[str, one_of("auto", "any", "tool", "none")]
    name: str = ""
    disable_parallel_tool_use: bool = False


class Thinking(Body):
    """Whether the model shall think: enabled, adaptive, between_tools or disabled."""

    type: Annotated[str, one_of("enabled", "adaptive", "between_tools", "disabled")]


class OutputFormat(Body):
    """What form the answer must have: json_schema."""

    type: Annotated[str, one_of(*FORMATS)]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class OutputConfig(Body):
    """How hard to think, and what form the answer must have."""

    effort: Annotated[str | None, one_of(*EFFORTS)] = None
    format: OutputFormat | None = None


class CountBody(Body):
    """POST /v1/messages/count_tokens."""

    model_config = needs("model", "messages")

    model: str = ""
    messages: Annotated[list[AnthropicMessage], Field(max_length=MAX_OBJECTS, json_schema_extra={"minItems": 1})] = []
    system: InnerBlocks = []
    tools: Annotated[list[ClientTool], Field(max_length=MAX_OBJECTS)] = []
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()


class MessagesBody(CountBody):
    """POST /v1/messages."""

    model_config = needs("model", "messages", "max_tokens")

    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool = False
    temperature: Annotated[float | None, Field(ge=0, le=1)] = None
    top_p: float | None = None
    top_k: Annotated[int | None, Field(ge=0)] = None
    stop_sequences: Annotated[list[str], Field(max_length=MAX_OBJECTS)] = []
