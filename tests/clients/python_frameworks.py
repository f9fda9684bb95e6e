"""Hold LangChain, LiteLLM and LlamaIndex against a server, in an environment of their own; print what was run.

    FOLDER/bin/python tests/clients/python_frameworks.py http://127.0.0.1:11434

The server must have the model `demo`; `caller`, the same with a template for tools, is made of it. The end is status 1
where something does not work. These packages are no dependency of the project: docs/clients.md has their
versions, and what they did.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import litellm
from framework_checks import CHECKS, LONG, QUESTION, SHORT, URL, call, check, expected, not_found, same
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.llms.ollama import Ollama
from pydantic import BaseModel, ConfigDict, Field

TEMPLATE = (
    "{{ range .Tools }}{{ . }}{{ end }}{{ range .Messages }}{{ .Role }}: {{ .Content }}<tool_call>\n{{ end }}assistant:"
)


class Small(BaseModel):
    """Whether it is so."""

    model_config = ConfigDict(extra="forbid")
    yes: bool


@tool
def weather(city: Annotated[str, Field(max_length=12)], days: Annotated[int, Field(ge=1, le=5)]) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city} for {days} days"


def chat_ollama(**more: Any) -> ChatOllama:
    return ChatOllama(**{"model": "demo", "base_url": URL, "temperature": 0, "num_predict": SHORT} | more)


def chat_openai(**more: Any) -> ChatOpenAI:
    settings = {"model": "demo", "base_url": f"{URL}/v1", "api_key": "none", "temperature": 0, "max_tokens": SHORT}
    return ChatOpenAI(**settings | {"max_retries": 0} | more)


def chat_anthropic(**more: Any) -> ChatAnthropic:
    settings = {"model": "demo", "base_url": URL, "api_key": "none", "temperature": 0, "max_tokens": SHORT}
    return ChatAnthropic(**settings | {"max_retries": 0} | more)


def text_of(message: Any) -> str:
    """Return the text of a message whose content may be blocks."""
    return message.content if isinstance(message.content, str) else "".join(b.get("text", "") for b in message.content)


# The demo model would go on with properties of its own for ever, where a schema does not forbid them.
PARAMETERS = weather.args_schema.model_json_schema() | {"additionalProperties": False}
CLOSED = {
    "langchain-openai": {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    "langchain-anthropic": {"name": "weather", "description": "d", "input_schema": PARAMETERS},
}
CALLS = [{"name": "weather", "args": {"city": "Köln", "days": 1}, "id": "call_1"}]
LANGCHAIN = {"langchain-ollama": chat_ollama, "langchain-openai": chat_openai, "langchain-anthropic": chat_anthropic}


def add_langchain(package: str, make: Callable[..., Any]) -> None:
    """Add the checks that are the same for all of LangChain's chat models."""
    limit = "num_predict" if package == "langchain-ollama" else "max_tokens"

    @check(package, "invoke")
    def invoke() -> None:
        message = make().invoke(QUESTION)
        same(text_of(message), expected())
        same(message.usage_metadata["output_tokens"], SHORT)

    @check(package, "stream")
    def stream() -> None:
        same("".join(text_of(part) for part in make().stream(QUESTION)), expected())

    @check(package, "astream, batch")
    def later() -> None:
        async def pieces() -> str:
            return "".join([text_of(part) async for part in make().astream(QUESTION)])

        same(asyncio.run(pieces()), expected())
        same([text_of(message) for message in make().batch([QUESTION, QUESTION])], [expected()] * 2)

    @check(package, "with_structured_output (schema)")
    def structured() -> None:
        same(type(make(**{limit: LONG}).with_structured_output(Small, method="json_schema").invoke(QUESTION)), Small)

    @check(package, "bind_tools and their results")
    def tools() -> None:
        model = make(model="caller", **{limit: LONG})
        told = model.bind_tools([weather]).invoke(QUESTION)
        if told.usage_metadata["input_tokens"] <= make(model="caller").invoke(QUESTION).usage_metadata["input_tokens"]:
            raise AssertionError("the tools did not reach the prompt")
        turns = [HumanMessage(QUESTION), AIMessage("", tool_calls=CALLS), ToolMessage("sunny", tool_call_id="call_1")]
        model.bind_tools([weather]).invoke(turns)

    if package != "langchain-ollama":  # which drops tool_choice

        @check(package, "tool_choice")
        def forced() -> None:
            model = make(model="caller", **{limit: LONG}).bind_tools([CLOSED[package]], tool_choice="weather")
            (made,) = model.invoke(QUESTION).tool_calls
            same((made["name"], sorted(made["args"])), ("weather", ["city", "days"]))
            whole = None
            for part in model.stream(QUESTION):
                whole = part if whole is None else whole + part
            same(whole.tool_calls[0]["args"], made["args"])

    @check(package, "an unknown model is an error")
    def unknown() -> None:
        not_found(lambda: make(model="nope").invoke(QUESTION))


for name, maker in LANGCHAIN.items():
    add_langchain(name, maker)


@check("langchain-ollama", "OllamaLLM, OllamaEmbeddings, validate_model_on_init, reasoning=False")
def others_of_ollama() -> None:
    assert OllamaLLM(model="demo", base_url=URL, num_predict=8, validate_model_on_init=True).invoke("import os\n")
    vectors = OllamaEmbeddings(model="demo", base_url=URL, validate_model_on_init=True)
    same([len(vector) for vector in vectors.embed_documents(["import os", "def"])], [256, 256])
    same(len(vectors.embed_query("import os")), 256)
    same(text_of(chat_ollama(reasoning=False, keep_alive="5m", format="").invoke(QUESTION)), expected())


@check("langchain-openai", "responses API, completions of several prompts, embeddings")
def others_of_openai() -> None:
    same(text_of(chat_openai(use_responses_api=True).invoke(QUESTION)), expected())
    same("".join(text_of(p) for p in chat_openai(use_responses_api=True).stream(QUESTION)), expected())
    texts = OpenAI(model="demo", base_url=f"{URL}/v1", api_key="none", max_tokens=8, temperature=0)
    same(len(texts.generate(["import os\n", "def close"]).generations), 2)
    vectors = OpenAIEmbeddings(model="demo", base_url=f"{URL}/v1", api_key="none", check_embedding_ctx_length=False)
    same([len(vector) for vector in vectors.embed_documents(["import os", "def"])], [256, 256])


@check("langchain-anthropic", "get_num_tokens_from_messages")
def counts_of_anthropic() -> None:
    messages = [HumanMessage(QUESTION)]
    same(
        chat_anthropic().get_num_tokens_from_messages(messages),
        chat_anthropic().invoke(messages).usage_metadata["input_tokens"],
    )


MESSAGES = [{"role": "user", "content": QUESTION}]
ROUTES = {
    "ollama/": {"api_base": URL},
    "ollama_chat/": {"api_base": URL},
    "openai/": {"api_base": f"{URL}/v1", "api_key": "none"},
    "anthropic/": {"api_base": URL, "api_key": "none"},
}


CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
CITY_TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": CITY | {"additionalProperties": False}},
}


def add_litellm(prefix: str, more: dict[str, Any]) -> None:
    """Add the checks of one of LiteLLM's ways to a server."""

    def completion(model: str = "demo", count: int = SHORT, **others: Any) -> Any:
        return litellm.completion(prefix + model, MESSAGES, temperature=0, max_tokens=count, **more, **others)

    @check("litellm", f"{prefix} completion, stream")
    def texts() -> None:
        answer = completion()
        same(answer.usage.completion_tokens, SHORT)
        streamed = "".join(part.choices[0].delta.content or "" for part in completion(stream=True))
        same(streamed, answer.choices[0].message.content)
        if prefix != "ollama/":  # which writes a prompt of its own
            same(streamed, expected())

    @check("litellm", f"{prefix} structured output")
    def structured() -> None:
        model = "caller" if prefix == "anthropic/" else "demo"  # as a tool, that way
        answer = completion(model, LONG, response_format=Small)
        Small.model_validate_json(answer.choices[0].message.content)

    if prefix != "ollama/":

        @check("litellm", f"{prefix} tools")
        def tools() -> None:
            choice = "auto" if prefix == "ollama_chat/" else "required"
            answer = completion("caller", LONG, tools=[CITY_TOOL], tool_choice=choice)
            if choice == "required":
                made = answer.choices[0].message.tool_calls[0].function
                same((made.name, list(json.loads(made.arguments))), ("weather", ["city"]))

    if prefix != "anthropic/":

        @check("litellm", f"{prefix} embedding")
        def vectors() -> None:
            name = "ollama/" if prefix == "ollama_chat/" else prefix
            answer = litellm.embedding(name + "demo", input=["import os", "def"], **more)
            same([len(entry["embedding"]) for entry in answer.data], [256, 256])

    @check("litellm", f"{prefix} an unknown model is an error")
    def unknown() -> None:
        not_found(lambda: completion("nope"))


for way, settings in ROUTES.items():
    add_litellm(way, settings)


def llama_index(**more: Any) -> Ollama:
    settings = {"model": "demo", "base_url": URL, "temperature": 0, "request_timeout": 120}
    return Ollama(**settings | {"additional_kwargs": {"num_predict": SHORT}} | more)


@check("llama-index-llms-ollama", "chat, stream_chat, complete, structured output")
def of_llama_index() -> None:
    messages = [ChatMessage(role="user", content=QUESTION)]
    same(llama_index().chat(messages).message.content, expected())
    same("".join(part.delta or "" for part in llama_index().stream_chat(messages)), expected())
    assert llama_index().complete("import os\n").text
    same(type(llama_index(additional_kwargs={"num_predict": LONG}).as_structured_llm(Small).chat(messages).raw), Small)


@check("llama-index-embeddings-ollama", "one text and several")
def vectors_of_llama_index() -> None:
    vectors = OllamaEmbedding(model_name="demo", base_url=URL)
    same(len(vectors.get_text_embedding("import os")), 256)
    same([len(vector) for vector in vectors.get_text_embedding_batch(["import os", "def"])], [256, 256])


def main() -> None:
    """Run all checks; print a line for each."""
    litellm.suppress_debug_info = True
    call("/api/create", {"model": "caller", "from": "demo", "template": TEMPLATE, "stream": False})
    failed = 0
    for package, what, function in CHECKS:
        try:
            function()
        except Exception:
            failed += 1
            print(f"FAILED  {package} {importlib.metadata.version(package)}: {what}\n{traceback.format_exc(limit=-4)}")
        else:
            print(f"passed  {package} {importlib.metadata.version(package)}: {what}", flush=True)
    print(f"{len(CHECKS)} checks, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
