"""Translate the bodies of Anthropic's routes into Ollama's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ollampi.api.errors import bad_request, shown
from ollampi.api.model import Model
from ollampi.api.wires.anthropic_bodies import AnthropicMessage, Block, ClientTool, CountBody, InnerBlock, MessagesBody
from ollampi.api.wires.body import read_body
from ollampi.api.wires.ollama_bodies import ChatBody
from ollampi.api.wires.parts import (
    MAX_TOKENS,
    call_of,
    format_of,
    image_of_bytes,
    joined,
    result_of,
    think_of,
    tool_of,
)

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THINKS = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}
_NO_CONTENT = ("tool_use", "thinking", "redacted_thinking")
_DROPPED = ("server_tool_use", "web_search_tool_result")  # of another server's tools
_JSON = dict[str, Any]


def message_body(body: MessagesBody, model: Model) -> ChatBody:
    """Return a conversation as Ollama has it; raise ApiError (400)."""
    options = {
        "num_predict": min(body.max_tokens, MAX_TOKENS),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else min(body.top_k, MAX_TOKENS),
        "stop": body.stop_sequences or None,
    }
    return read_body(ChatBody, _conversation(body, model) | {"stream": body.stream, "options": options})


def count_body(body: CountBody, model: Model) -> ChatBody:
    """Return a conversation whose tokens are to be counted, as Ollama has it; raise ApiError (400)."""
    return read_body(ChatBody, _conversation(body, model))


def _conversation(body: CountBody, model: Model) -> _JSON:
    """Return what decides the prompt, and how the answer is made; raise ApiError (400)."""
    if not body.messages:
        raise bad_request("messages: at least one message is required")
    form, choice = body.output_config.format, body.tool_choice
    return {
        "model": body.model,
        "messages": _messages(body),
        "format": None if form is None else format_of(form.type, form.schema_, "output_config.format"),
        "think": _think(body, model),
        "tools": [_tool(tool, f"tools[{number}]") for number, tool in enumerate(body.tools)],
        "tool_choice": None if choice is None else _choice(choice.type, choice.name),
        "parallel_tool_calls": choice is None or not choice.disable_parallel_tool_use,
    }


def _think(body: CountBody, model: Model) -> bool | str:
    """Return whether and how hard the model shall think: not at all where it cannot, or nobody said so."""
    effort = think_of(body.output_config.effort, "output_config.effort")
    if body.thinking is None:
        return False
    if body.thinking.type not in _THINKS:
        raise bad_request(f"thinking.type is {shown(body.thinking.type, 40)!r}; use {', '.join(_THINKS)}")
    if not _THINKS[body.thinking.type] or "thinking" not in model.capabilities:
        return False
    return effort or True


def _messages(body: CountBody) -> list[_JSON]:
    """Return messages as Ollama has them; raise ApiError (400)."""
    system = _text(body.system, "system")
    messages: list[_JSON] = [{"role": "system", "content": system}] if system else []
    for number, message in enumerate(body.messages):
        where = f"messages[{number}]"
        if message.role not in ("user", "assistant", "system"):
            raise bad_request(f"{where}.role is {shown(message.role, 40)!r}; use user or assistant")
        messages += _parts_of(message, where, messages)
    return messages


def _parts_of(message: AnthropicMessage, where: str, before: list[_JSON]) -> list[_JSON]:
    """Return the message of a user or the assistant, behind the results of tools that are in it."""
    results, rest = [], []
    for number, block in enumerate(message.content):
        place = f"{where}.content[{number}]"
        if block.type == "tool_result":
            results.append(_result(block, place, before))
        elif block.type not in _DROPPED:
            rest.append((place, block))
    if results and not rest:
        return results
    values: _JSON = {"role": message.role, **_content([pair for pair in rest if pair[1].type not in _NO_CONTENT])}
    values["thinking"] = joined(block.thinking for _, block in rest if block.thinking)
    values["tool_calls"] = [call_of(block.id, block.name, block.input) for _, block in rest if block.type == "tool_use"]
    return [*results, values]


def _result(block: Block, where: str, before: list[_JSON]) -> _JSON:
    """Return what a tool answered as a message of Ollama's; raise ApiError (400)."""
    content = _content([(f"{where}.content[{number}]", inner) for number, inner in enumerate(block.content)])
    text = f"error: {content['content']}" if block.is_error else content["content"]
    return result_of(before, block.tool_use_id, text) | {"images": content["images"]}


def _text(blocks: Sequence[InnerBlock], where: str) -> str:
    """Return the text of blocks that can hold nothing else; raise ApiError (400)."""
    for number, block in enumerate(blocks):
        if block.type != "text":
            raise bad_request(f"{where}[{number}].type is {shown(block.type, 40)!r}; only text is taken here")
    return joined(block.text for block in blocks)


def _content(blocks: Sequence[tuple[str, InnerBlock]]) -> _JSON:
    """Return text and images of blocks, as a message of Ollama's has them; raise ApiError (400)."""
    texts, images = [], []
    for where, block in blocks:
        if block.type == "text":
            texts.append(block.text)
        elif block.type == "image":
            images.append(_image(block, f"{where}.source"))
        else:
            raise bad_request(f"{where}.type {shown(block.type, 40)!r} is not supported; use text or image")
    return {"content": joined(texts), "images": images}


def _image(block: InnerBlock, where: str) -> str:
    """Return the base64 of an image; raise ApiError (400), also for links, which are not followed."""
    if block.source is None or block.source.type != "base64":
        raise bad_request(f"{where}.type must be base64, with media_type and data")
    return image_of_bytes(block.source.media_type, block.source.data, where)


def _tool(tool: ClientTool, where: str) -> _JSON:
    if tool.type != "custom":
        raise bad_request(f"{where}.type {shown(tool.type, 40)!r} is not supported; only tools of the client can be")
    return tool_of(tool.name, tool.description, tool.input_schema)


def _choice(kind: str, name: str) -> str | _JSON:
    """Return tool_choice as /v1/chat/completions has it; raise ApiError (400)."""
    if kind == "tool":
        return {"type": "function", "function": {"name": name}}
    if kind not in _CHOICES:
        raise bad_request(f"tool_choice.type is {shown(kind, 40)!r}; use auto, any, tool or none")
    return _CHOICES[kind]
