"""Translate the bodies of OpenAI's routes into Ollama's."""

from __future__ import annotations

from typing import Any

from ollampi.api.errors import bad_request, shown
from ollampi.api.wires.body import read_body
from ollampi.api.wires.ollama_bodies import ChatBody, EmbedBody, GenerateBody
from ollampi.api.wires.openai_bodies import (
    MAX_TEXTS,
    AnswersBody,
    AskedMessage,
    ChatCompletionsBody,
    CompletionsBody,
    Part,
    VectorsBody,
)
from ollampi.api.wires.parts import (
    MAX_TOKENS,
    arguments_of,
    call_of,
    format_of,
    image_of_url,
    joined,
    result_of,
    think_of,
)

_ROLES = {"developer": "system", "function": "tool"}


def chat_body(body: ChatCompletionsBody) -> ChatBody:
    """Return a conversation as Ollama has it; raise ApiError (400)."""
    if not body.messages:
        raise bad_request("[] is too short - 'messages'")
    response = body.response_format
    values = {
        "model": body.model,
        "messages": _messages(body.messages),
        "stream": body.stream,
        "format": format_of(response.type, response.json_schema.schema_, "response_format"),
        "think": _think(body),
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs if body.logprobs else 0,
        "tools": body.tools,
        "tool_choice": body.tool_choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "options": _options(body, body.max_completion_tokens or body.max_tokens),
    }
    return read_body(ChatBody, values)


def _think(body: ChatCompletionsBody) -> bool | str | None:
    """Return how hard the model shall think, None where nothing was said; raise ApiError (400).

    Of a template's arguments only enable_thinking is taken: others would change what the template is given.
    """
    arguments = {name: value for name, value in body.chat_template_kwargs.items() if name != "enable_thinking"}
    if arguments:
        raise bad_request(
            f"chat_template_kwargs holds {shown(next(iter(arguments)), 40)!r}; only enable_thinking is taken"
        )
    thinks = body.chat_template_kwargs.get("enable_thinking")
    if thinks is not None and not isinstance(thinks, bool):
        raise bad_request("chat_template_kwargs.enable_thinking must be true or false")
    return (
        thinks if thinks is not None else think_of(body.reasoning_effort or body.reasoning.effort, "reasoning_effort")
    )


def generate_bodies(body: CompletionsBody) -> list[GenerateBody]:
    """Return the texts to continue as Ollama has them; raise ApiError (400)."""
    if body.echo and body.logprobs is not None:
        raise bad_request("echo with logprobs is not supported: a prompt has none; leave one of them out")
    if body.best_of not in (None, body.n):
        raise bad_request(f"best_of is {shown(str(body.best_of), 30)}, but it must be n ({body.n}); leave it out")
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise bad_request("prompt must be a text or a list of texts; token ids are not taken")
    if len(prompts) * body.n > MAX_TEXTS:
        raise bad_request(
            f"{len(prompts)} prompts with {body.n} answers each are more than {MAX_TEXTS}; send fewer in one request"
        )
    if "" in prompts:
        raise bad_request(f"prompt[{prompts.index('')}] is empty; write some text")
    values = {
        "model": body.model,
        "suffix": body.suffix,
        "stream": body.stream,
        "logprobs": body.logprobs is not None,
        "top_logprobs": body.logprobs or 0,
        "options": _options(body, body.max_tokens),
    }
    return [read_body(GenerateBody, values | {"prompt": prompt}) for prompt in prompts]


def embed_body(body: VectorsBody) -> EmbedBody:
    """Return texts to embed as Ollama has them; raise ApiError (400)."""
    if body.encoding_format not in ("float", "base64"):
        raise bad_request(f"encoding_format is {shown(body.encoding_format, 40)!r}; use float or base64")
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise bad_request("input must be a text or a list of texts; token ids are not taken")
    if not all(texts):
        raise bad_request("input holds an empty text; leave it out")
    return read_body(EmbedBody, {"model": body.model, "input": texts, "dimensions": body.dimensions})


def content_of(parts: list[Part], where: str) -> dict[str, Any]:
    """Return text and images of parts, as a message of Ollama's has them; raise ApiError (400)."""
    texts, images = [], []
    for number, part in enumerate(parts):
        place = f"{where}[{number}]"
        if part.type == "text":
            texts.append(part.text)
        elif part.type == "refusal":
            texts.append(part.refusal)
        elif part.type == "image_url":
            images.append(image_of_url(part.image_url.url if part.image_url else "", f"{place}.image_url"))
        else:
            raise bad_request(f"{place}.type is {shown(part.type, 40)!r}; use text or image_url")
    return {"content": joined(texts), "images": images}


def _messages(given: list[AskedMessage]) -> list[dict[str, Any]]:
    """Return messages as Ollama has them; raise ApiError (400)."""
    messages: list[dict[str, Any]] = []
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        role = _ROLES.get(message.role, message.role)
        content = content_of(message.content, f"{where}.content")
        if role == "tool":
            messages.append(result_of(messages, message.tool_call_id, content["content"], message.name))
            continue
        thinking = message.reasoning or message.reasoning_content
        messages.append({"role": role, **content, "thinking": thinking, "tool_calls": _calls(message, where)})
    return messages


def _calls(message: AskedMessage, where: str) -> list[dict[str, Any]]:
    """Return the calls of a message as Ollama has them; raise ApiError (400)."""
    calls = []
    for number, call in enumerate(message.tool_calls):
        arguments = arguments_of(call.function.arguments, f"{where}.tool_calls[{number}].function.arguments")
        calls.append(call_of(call.id, call.function.name, arguments))
    return calls


def _options(body: AnswersBody, limit: int | None) -> dict[str, Any]:
    """Return the options of a request."""
    values = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "stop": body.stop,
        "logit_bias": body.logit_bias,
        "seed": body.seed,
        "num_predict": None if limit is None else min(limit, MAX_TOKENS),
    }
    return {name: value for name, value in values.items() if value not in (None, [], {})}
