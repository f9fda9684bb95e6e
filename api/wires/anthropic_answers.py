"""Say what the answers of Anthropic's routes hold: their JSON schemas, for the OpenAPI document and the tests."""

from __future__ import annotations

from typing import Any, Literal

from ollampi.api.wires.ollama_answers import Answer


class TokenCount(Answer):
    """POST /v1/messages/count_tokens."""

    input_tokens: int


class MessageUsage(TokenCount):
    """What a message cost, in tokens."""

    output_tokens: int


class TextBlock(Answer):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Answer):
    """What the model thought."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(Answer):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class AnsweredMessage(Answer):
    """POST /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage
