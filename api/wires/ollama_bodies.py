"""Say what the bodies of Ollama's routes hold; ours are `tool_choice`, `parallel_tool_calls` and `from` of a pull."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from ollampi.api.options import OPTIONS_MARK
from ollampi.api.wires.body import MAX_OBJECTS, Body

_DURATION = {"type": ["number", "string"], "description": "seconds, or a duration such as 5m; negative: for ever"}
_FORMAT = {
    "anyOf": [{"enum": ["", "json"]}, {"type": "object"}],
    "description": '"json", or the JSON schema that the answer must match',
}
_THINK = {
    "anyOf": [{"type": "boolean"}, {"enum": ["low", "medium", "high", "max"]}],
    "description": "whether the model reasons before its answer, and how hard",
}
_CHOICE = {"type": ["string", "object"], "description": "none, auto, required, or an object that names a function"}
_INPUT = {"type": ["string", "array"], "items": {"type": "string"}, "description": "one text, or several"}
MAX_TOP_LOGPROBS = 20
Options = Annotated[dict[str, Any], WithJsonSchema({OPTIONS_MARK: "Options"})]
EmbedOptions = Annotated[dict[str, Any], WithJsonSchema({OPTIONS_MARK: "EmbedOptions"})]
Objects = Annotated[list[dict[str, Any]], Field(max_length=MAX_OBJECTS)]


KeepAlive = Annotated[Any, WithJsonSchema(_DURATION)]


class Named(Body):
    """A body that names a model; older clients call it name."""

    model: str = ""
    name: str = ""

    @property
    def called(self) -> str:
        """Return the name as the client wrote it."""
        return self.model or self.name


class KeptBody(Named):
    """What requests share that need a loaded model; keep_alive is seconds or a duration such as "5m"."""

    keep_alive: KeepAlive = None
    options: EmbedOptions = {}


class AnswerBody(KeptBody):
    """What /api/generate and /api/chat share."""

    options: Options = {}
    stream: bool = True
    format: Annotated[Any, WithJsonSchema(_FORMAT)] = None
    think: Annotated[Any, WithJsonSchema(_THINK)] = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = Field(default=0, json_schema_extra={"minimum": 0, "maximum": MAX_TOP_LOGPROBS})
    debug_render_only: bool = Field(default=False, alias="_debug_render_only")


class GenerateBody(AnswerBody):
    """POST /api/generate."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "integer"}})] = []
    raw: bool = False
    images: list[Any] = []


class Message(Body):
    """One message of a conversation."""

    role: str = ""
    content: str = ""
    thinking: str = ""
    images: list[Any] = []
    tool_calls: Objects = []
    tool_name: str = ""
    tool_call_id: str = ""


class ChatBody(AnswerBody):
    """POST /api/chat; tool_choice as OpenAI has it: none, auto, required, or an object that names a function."""

    messages: Annotated[list[Message], Field(max_length=MAX_OBJECTS)] = []
    tools: Objects = []
    tool_choice: Annotated[Any, WithJsonSchema(_CHOICE)] = None
    parallel_tool_calls: bool = True


class EmbedBody(KeptBody):
    """POST /api/embed."""

    input: Annotated[Any, WithJsonSchema(_INPUT)] = None
    truncate: bool = True
    dimensions: int = 0


class EmbeddingsBody(KeptBody):
    """POST /api/embeddings, the older route."""

    prompt: str = ""


class ShowBody(Named):
    """POST /api/show."""

    system: str = ""
    verbose: bool = False
    options: dict[str, Any] = {}
