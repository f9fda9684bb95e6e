"""Say what the bodies of OpenAI's routes hold, as far as it has an effect; what else clients send is ignored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from ollampi.api.wires.body import MAX_OBJECTS, Body
from ollampi.api.wires.ollama_bodies import Objects
from ollampi.api.wires.parts import EFFORTS, FORMATS, as_list, as_parts, needs, one_of

MAX_CHOICES = 8
MAX_TEXTS = 64  # choices of all prompts of one request
MAX_TOP_LOGPROBS = 20
_TEXTS = {"type": ["string", "array"], "items": {"type": "string"}, "description": "one text, or several"}
_PARTS = {"type": ["string", "array"], "items": {"type": "object"}, "description": "a text, or a list of parts"}
_CHOICE = {"type": ["string", "object"], "description": "none, auto, required, or an object that names a function"}
_TEXT = {"type": "string", "minLength": 1}
_INPUT = {"type": ["string", "array"], "minLength": 1, "minItems": 1, "items": _TEXT, "description": "a text, or more"}

Texts = Annotated[list[str], BeforeValidator(as_list), Field(max_length=MAX_OBJECTS), WithJsonSchema(_TEXTS)]
Limit = Annotated[int, Field(ge=1, description="tokens of an answer at most")]
Biases = dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]


def as_url(value: Any) -> Any:
    """Return a bare URL of an image as the object that usually holds it."""
    return {"url": value} if isinstance(value, str) else value


class ImageUrl(Body):
    """An image of a message."""

    url: str


class Part(Body):
    """A part of a message: text, image_url or refusal."""

    type: str
    text: str = ""
    refusal: str = ""
    image_url: Annotated[ImageUrl | None, BeforeValidator(as_url)] = None


Parts = Annotated[list[Part], BeforeValidator(as_parts), Field(max_length=MAX_OBJECTS), WithJsonSchema(_PARTS)]


class CalledFunction(Body):
    """The function of a call; arguments are JSON text."""

    name: str
    arguments: str = ""


class Call(Body):
    """A call that the model made earlier."""

    id: str = ""
    function: CalledFunction


class AskedMessage(Body):
    """One message of a conversation; reasoning, or reasoning_content, is the model's of earlier."""

    role: str
    content: Parts = []
    name: str = ""
    reasoning: str = ""
    reasoning_content: str = ""
    tool_calls: Annotated[list[Call], Field(max_length=MAX_OBJECTS)] = []
    tool_call_id: str = ""


class StreamOptions(Body):
    """What a stream holds besides the answer."""

    include_usage: bool = False


class AnswersBody(Body):
    """What /v1/chat/completions and /v1/completions share; temperature and top_p are OpenAI's defaults."""

    model: str = ""
    max_tokens: Limit | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    seed: int | None = None
    stop: Texts = []
    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Biases = {}
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()


class NamedSchema(Body):
    """A JSON schema and what it is called."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(Body):
    """What form the answer must have: text, json_object or json_schema."""

    type: Annotated[str, one_of(*FORMATS)] = "text"
    json_schema: NamedSchema = NamedSchema()


class Reasoning(Body):
    """How hard to think."""

    effort: Annotated[str | None, one_of(*EFFORTS)] = None
    summary: str | None = None


class ChatCompletionsBody(AnswersBody):
    """POST /v1/chat/completions; max_completion_tokens wins over max_tokens."""

    model_config = needs("model", "messages")

    messages: Annotated[list[AskedMessage], Field(max_length=MAX_OBJECTS, json_schema_extra={"minItems": 1})] = []
    max_completion_tokens: Limit | None = None
    response_format: ResponseFormat = ResponseFormat()
    reasoning_effort: Annotated[str | None, one_of(*EFFORTS)] = None
    reasoning: Reasoning = Reasoning()
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    tools: Objects = []
    tool_choice: Annotated[Any, WithJsonSchema(_CHOICE)] = None
    chat_template_kwargs: dict[str, Any] = {}
    parallel_tool_calls: bool = True


class CompletionsBody(AnswersBody):
    """POST /v1/completions; best_of can only be n, and `echo` puts the prompt before its answers."""

    model_config = needs("model", "prompt")

    prompt: Annotated[Any, WithJsonSchema(_INPUT | {"maxItems": MAX_TEXTS // MAX_CHOICES})] = None
    suffix: str = ""
    echo: bool = False
    best_of: int | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None


class VectorsBody(Body):
    """POST /v1/embeddings; encoding_format is float or base64."""

    model_config = needs("model", "input")

    model: str = ""
    input: Annotated[Any, WithJsonSchema(_INPUT)] = None
    dimensions: Annotated[int, Field(ge=1)] = 0
    encoding_format: Annotated[str, one_of("float", "base64")] = "float"
