"""Say what the answers of Ollama's routes hold: their JSON schemas, for the OpenAPI document and the tests.

A field with a default is left out where there is nothing to say; it is never null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

_TIME = {"type": "string", "format": "date-time"}
_DIGEST = {"type": "string", "pattern": "^([0-9a-f]{64})?$"}
Time = Annotated[str, WithJsonSchema(_TIME)]
Digest = Annotated[str, WithJsonSchema(_DIGEST)]
Nanoseconds = Annotated[int, WithJsonSchema({"type": "integer", "minimum": 1, "description": "nanoseconds"})]


class Answer(BaseModel):
    """An object of an answer; it holds nothing that is not named here."""

    model_config = ConfigDict(extra="forbid")


class Version(Answer):
    """GET /api/version."""

    version: str


class Details(Answer):
    """What a model is, in words."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int = 0
    embedding_length: int = 0


class Nothing(Answer):
    """An object without fields."""


class ListedModel(Answer):
    """A model that can be used."""

    name: str
    model: str
    modified_at: Time
    size: int
    digest: Digest
    details: Details
    capabilities: list[str]
    remote_model: str = ""
    remote_host: str = ""


class Tags(Answer):
    """GET /api/tags: newest first."""

    models: list[ListedModel]


class RunningModel(Answer):
    """A model in memory; one whose files have gone has no details."""

    name: str
    model: str
    size: int
    digest: Digest
    details: Details | Nothing
    expires_at: Time
    size_vram: int
    context_length: int
    note: str = ""


class Running(Answer):
    """GET /api/ps: latest expiry first."""

    models: list[RunningModel]


class Tensor(Answer):
    """A tensor of a model."""

    name: str
    type: str
    shape: list[int]


class Shown(Answer):
    """POST /api/show."""

    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    system: str = ""
    renderer: str = ""
    parser: str = ""
    details: Details
    messages: list[dict[str, Any]] = []
    model_info: dict[str, Any]
    projector_info: dict[str, Any] = {}
    tensors: list[Tensor] = []
    capabilities: list[str]
    modified_at: Time
    requires: str = ""


class TopLogprob(Answer):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob] = []


class Function(Answer):
    """What a model calls."""

    index: int = 0
    name: str
    description: str = ""
    arguments: dict[str, Any]


class ToolCall(Answer):
    """A call of a tool."""

    id: str = ""
    function: Function


class DebugInfo(Answer):
    """What _debug_render_only shows."""

    rendered_template: str
    image_count: int = 0


class Text(Answer):
    """What the objects of /api/generate and /api/chat share; the costs are in the last one."""

    model: str
    created_at: Time
    remote_model: str = ""
    remote_host: str = ""
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] = "stop"
    logprobs: list[Logprob] = []
    debug_info: DebugInfo = Field(default_factory=lambda: DebugInfo(rendered_template=""), alias="_debug_info")
    total_duration: Nanoseconds = 0
    load_duration: Nanoseconds = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: Nanoseconds = 0
    eval_count: int = 0
    eval_duration: Nanoseconds = 0


class Generated(Text):
    """POST /api/generate: a piece of the answer, or all of it."""

    response: str
    thinking: str = ""
    context: list[int] = []
    tool_calls: list[ToolCall] = []


class ChatMessage(Answer):
    """A message of the model."""

    role: str
    content: str
    thinking: str = ""
    tool_calls: list[ToolCall] = []


class Chatted(Text):
    """POST /api/chat: a piece of the answer, or all of it."""

    message: ChatMessage


class Embedded(Answer):
    """POST /api/embed: a vector for each text, in order."""

    model: str
    embeddings: list[list[float]]
    total_duration: Nanoseconds = 0
    load_duration: Nanoseconds = 0
    prompt_eval_count: int = 0


class EmbeddedText(Answer):
    """POST /api/embeddings."""

    embedding: list[float]


class Progress(Answer):
    """A line of a pull, push or create; the last one says success."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0
