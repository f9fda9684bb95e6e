"""Translate the body of /v1/responses into Ollama's."""

from __future__ import annotations

from typing import Any

from ollampi.api.errors import bad_request, shown
from ollampi.api.wires.body import read_body
from ollampi.api.wires.ollama_bodies import ChatBody
from ollampi.api.wires.parts import (
    MAX_TOKENS,
    arguments_of,
    call_of,
    format_of,
    image_of_url,
    joined,
    result_of,
    think_of,
    tool_of,
)
from ollampi.api.wires.responses_bodies import FunctionTool, InputPart, Item, ResponsesBody

_TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text")
_IGNORED_ITEMS = ("web_search_call",)  # of another server's answers; their results are in its messages
_JSON = dict[str, Any]


def chat_body(body: ResponsesBody) -> ChatBody:
    """Return a conversation as Ollama has it; raise ApiError (400)."""
    _check_stateless(body)
    if body.truncation not in ("auto", "disabled"):
        raise bad_request(f"truncation is {shown(body.truncation, 40)!r}; use auto or disabled")
    messages = _messages(body.input)
    if not messages:
        raise bad_request("input is empty; write some text")
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    options: _JSON = {"temperature": body.temperature, "top_p": body.top_p}
    if body.max_output_tokens is not None:
        options["num_predict"] = min(body.max_output_tokens, MAX_TOKENS)
    values = {
        "model": body.model,
        "messages": messages,
        "stream": body.stream,
        "format": format_of(body.text.format.type, body.text.format.schema_, "text.format"),
        "think": think_of(body.reasoning.effort, "reasoning.effort"),
        "truncate": body.truncation == "auto",
        "tools": [_tool(tool, f"tools[{number}]") for number, tool in enumerate(body.tools)],
        "tool_choice": body.tool_choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "options": options,
    }
    return read_body(ChatBody, values)


def _check_stateless(body: ResponsesBody) -> None:
    """Raise ApiError (400) for what needs answers to be stored."""
    names = ("previous_response_id", "conversation", "background")
    for name in names:
        if getattr(body, name):
            raise bad_request(f"{name} is not supported: answers are not stored here; send the whole conversation")


def _messages(items: list[Item]) -> list[_JSON]:
    """Return items as messages of Ollama's; reasoning and calls join the assistant's message; raise ApiError (400)."""
    messages: list[_JSON] = []
    thinking = ""
    for number, item in enumerate(items):
        where = f"input[{number}]"
        if item.type == "message":
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, **_content(item.content, f"{where}.content")})
        elif item.type == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant"})
            call = call_of(item.call_id, item.name, arguments_of(item.arguments, f"{where}.arguments"))
            messages[-1].setdefault("tool_calls", []).append(call)
        elif item.type == "function_call_output":
            content = _content(item.output, f"{where}.output")["content"]
            messages.append(result_of(messages, item.call_id, content))
        elif item.type == "reasoning":
            thinking = joined(part.text for part in [*item.summary, *item.content])
            continue
        elif item.type not in _IGNORED_ITEMS:
            raise bad_request(f"{where}.type {shown(item.type, 40)!r} is not supported; use message or function_call")
        if thinking and messages and messages[-1]["role"] == "assistant":
            messages[-1]["thinking"], thinking = thinking, ""
    return messages


def _content(parts: list[InputPart], where: str) -> _JSON:
    """Return text and images of parts, as a message of Ollama's has them; raise ApiError (400)."""
    texts, images = [], []
    for number, part in enumerate(parts):
        place = f"{where}[{number}]"
        if part.type in _TEXT_PARTS:
            texts.append(part.text)
        elif part.type == "refusal":
            texts.append(part.refusal)
        elif part.type == "input_image":
            images.append(image_of_url(part.image_url.url if part.image_url else "", f"{place}.image_url"))
        else:
            raise bad_request(f"{place}.type is {shown(part.type, 40)!r}; use input_text, output_text or input_image")
    return {"content": joined(texts), "images": images}


def _tool(tool: FunctionTool, where: str) -> _JSON:
    if tool.type != "function":
        raise bad_request(f"{where}.type {shown(tool.type, 40)!r} is not supported; use function")
    return tool_of(tool.name, tool.description, tool.parameters)
