"""Say what the answers of OpenAI's routes hold: their JSON schemas, for the OpenAPI document and the tests."""

from __future__ import annotations

from typing import Any, Literal

from ollampi.api.wires.ollama_answers import Answer


class PromptUsage(Answer):
    """What texts to embed cost, in tokens."""

    prompt_tokens: int
    total_tokens: int


class AnswerUsage(PromptUsage):
    """What an answer cost, in tokens."""

    completion_tokens: int


class TokenAlternative(Answer):
    """A token that might have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TokenAlternative):
    """A token of an answer."""

    top_logprobs: list[TokenAlternative]


class ContentLogprobs(Answer):
    """The tokens of an answer."""

    content: list[TokenLogprobs]


class FunctionCalled(Answer):
    """The function of a call; arguments are JSON text."""

    name: str
    arguments: str


class ToolCalled(Answer):
    """A call of a tool."""

    index: int
    id: str
    type: Literal["function"]
    function: FunctionCalled


class AssistantMessage(Answer):
    """What the model answered."""

    role: Literal["assistant"]
    content: str | None
    reasoning: str = ""
    tool_calls: list[ToolCalled] = []


class ChatChoice(Answer):
    """One of `n` answers."""

    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: ContentLogprobs | None = None


class _Head(Answer):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: AnswerUsage


class ChatCompletion(_Head):
    """POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextLogprobs(Answer):
    """The tokens of an answer, as lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Answer):
    """One of `n` answers."""

    index: int
    text: str
    reasoning: str = ""
    finish_reason: Literal["stop", "length"]
    logprobs: TextLogprobs | None = None


class TextCompletion(_Head):
    """POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class TextVector(Answer):
    """The vector of a text, as numbers or as the base64 of little-endian float32."""

    object: Literal["embedding"]
    embedding: list[float] | str
    index: int


class TextVectors(Answer):
    """POST /v1/embeddings."""

    object: Literal["list"]
    data: list[TextVector]
    model: str
    usage: PromptUsage


class ServedModel(Answer):
    """GET /v1/models/MODEL."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ServedModels(Answer):
    """GET /v1/models."""

    object: Literal["list"]
    data: list[ServedModel]


class ResponseUsage(Answer):
    """What an answer cost, in tokens."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseItem(Answer):
    """A message, reasoning or a call of a tool."""

    id: str
    type: Literal["message", "reasoning", "function_call"]
    status: Literal["completed", "incomplete"] = "completed"
    role: Literal["assistant"] = "assistant"
    content: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class ResponseObject(Answer):
    """POST /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    background: bool
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[ResponseItem]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, str | None]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: str
    usage: ResponseUsage
    user: None
    metadata: dict[str, Any]
