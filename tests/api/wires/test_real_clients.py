"""OpenAI's and Anthropic's own clients against a server on 2 ranks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator

import anthropic
import openai
import pytest
from pydantic import BaseModel
from support.servers import DEMO, Server, server
from tokenizers import Tokenizer

QUESTION = [{"role": "user", "content": "Write the function close. Close the file."}]
GREEDY = {"temperature": 0}
TEMPLATE = "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}{# <think> enable_thinking #}"
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": PARAMETERS}}]
FLAT_TOOLS = [{"type": "function", "name": "weather", "description": "d", "parameters": PARAMETERS, "strict": True}]
CLAUDE_TOOLS = [{"name": "weather", "description": "d", "input_schema": PARAMETERS}]


class Small(BaseModel):
    yes: bool


def check_arguments(arguments: object) -> None:
    """Check that they match PARAMETERS."""
    assert isinstance(arguments, dict)
    assert set(arguments) == {"city", "days"}
    assert len(arguments["city"]) <= 12
    assert 1 <= arguments["days"] <= 5


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server of the demo model, and of `caller`, the same with a template for tools and thoughts."""
    folder = tmp_path_factory.mktemp("clients")
    shutil.copytree(DEMO, folder / "models" / "caller")
    path = folder / "models" / "caller" / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"chat_template": TEMPLATE + values["chat_template"]}))
    with server(2, folder, "dtype=float32", f"model_folders={folder / 'models'}") as running:
        yield running


@pytest.fixture
def ai(job: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{job.port}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(job: Server) -> Iterator[anthropic.Anthropic]:
    url = f"http://127.0.0.1:{job.port}"
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(job: Server) -> str:
    """Return what Ollama's route answers to the question."""
    options = {"temperature": 0, "num_predict": 24}
    body = {"model": "demo", "messages": QUESTION, "stream": False, "options": options}
    status, answer = job.request("POST", "/api/chat", body)
    assert status == 200
    text: str = answer["message"]["content"]
    assert text
    return text


def test_models(ai):
    assert {model.id for model in ai.models.list()} == {"demo:latest", "caller:latest"}
    assert ai.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        ai.models.retrieve("nope")


def test_chat(ai, expected):
    answer = ai.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_completion_tokens=24)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream(ai, expected):
    chunks = list(
        ai.chat.completions.create(
            model="demo",
            messages=QUESTION,
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert [bool(chunk.choices[0].delta.role) for chunk in chunks[:-1]] == [True] + [False] * (len(chunks) - 2)
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens > 0) == ([], True)
    with ai.chat.completions.stream(model="demo", messages=QUESTION, temperature=0, response_format=Small) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Small)


def test_chat_several(ai):
    asked = {"model": "demo", "messages": QUESTION, "n": 3, "seed": 5, "max_tokens": 12, "temperature": 1.5}
    answer = ai.chat.completions.create(**asked)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    streamed = ["", "", ""]
    for chunk in ai.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_logprobs_and_logit_bias(ai):
    settings = {"model": "demo", "messages": QUESTION, "temperature": 0, "max_tokens": 1, "logprobs": True}

    def first(**more: object) -> openai.types.chat.ChatCompletionTokenLogprob:
        return ai.chat.completions.create(**settings, **more).choices[0].logprobs.content[0]

    entry = first(top_logprobs=2)
    assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    unlikely = tokenizer.encode("zip", add_special_tokens=False).ids[0]
    assert first(logit_bias={str(unlikely): 100}).token == tokenizer.decode([unlikely])


def test_parse(ai):
    answer = ai.chat.completions.parse(model="demo", messages=QUESTION, max_tokens=100, response_format=Small)
    assert isinstance(answer.choices[0].message.parsed, Small)
    response = ai.responses.parse(model="demo", input="Write.", max_output_tokens=100, text_format=Small)
    assert isinstance(response.output_parsed, Small)


def test_tools(ai):
    asked = {"model": "caller", "messages": QUESTION, "tools": TOOLS, "tool_choice": "required", "max_tokens": 100}
    answer = ai.chat.completions.create(**asked, temperature=0, parallel_tool_calls=False)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    check_arguments(json.loads(call.function.arguments))
    with ai.chat.completions.stream(**asked, temperature=0, parallel_tool_calls=False) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [c.function.arguments for c in message.tool_calls] == [call.function.arguments]
    history = [*QUESTION, message.model_dump(exclude_none=True)]
    history.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"})
    again = ai.chat.completions.create(model="caller", messages=history, tools=TOOLS, max_tokens=5)
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens


def test_completions(ai, job):
    settings = {"model": "demo", "prompt": "import os\n", "temperature": 0, "max_tokens": 12}
    options = {"temperature": 0, "num_predict": 12}
    body = {"model": "demo", "prompt": "import os\n", "stream": False, "options": options}
    expected = job.request("POST", "/api/generate", body)[1]["response"]
    answer = ai.completions.create(**settings, logprobs=1)
    assert answer.choices[0].text == expected
    assert "".join(answer.choices[0].logprobs.tokens).startswith(expected)
    assert "".join(chunk.choices[0].text for chunk in ai.completions.create(**settings, stream=True)) == expected


def test_embeddings(ai):
    texts = ["import os", "def close(self):"]
    packed = ai.embeddings.create(model="demo", input=texts)  # as base64, which the client unpacks
    plain = ai.embeddings.create(model="demo", input=texts, encoding_format="float")
    assert len(packed.data) == len(plain.data) == 2
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.fsum(value * value for value in one.embedding) == pytest.approx(1, abs=1e-5)
    assert len(ai.embeddings.create(model="demo", input="import os", dimensions=8).data[0].embedding) == 8


def test_responses(ai, expected):
    asked = {"model": "demo", "input": QUESTION[0]["content"], "temperature": 0, "max_output_tokens": 24}
    answer = ai.responses.create(**asked)
    assert answer.output_text == expected
    assert answer.usage.output_tokens > 0
    events = list(ai.responses.create(**asked, stream=True))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == expected
    with ai.responses.stream(model="demo", input="Write.", text_format=Small, temperature=0) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Small)


def test_responses_tools(ai):
    asked = {"model": "caller", "input": "x", "tools": FLAT_TOOLS, "tool_choice": "required", "temperature": 0}
    answer = ai.responses.create(**asked, parallel_tool_calls=False, max_output_tokens=100)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    check_arguments(json.loads(call.arguments))
    with ai.responses.stream(**asked, parallel_tool_calls=False, max_output_tokens=100) as stream:
        streamed = stream.get_final_response()
    assert [item.arguments for item in streamed.output if item.type == "function_call"] == [call.arguments]
    items = [{"role": "user", "content": "x"}, *(item.model_dump(exclude_none=True) for item in answer.output)]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    assert ai.responses.create(model="caller", input=items, max_output_tokens=4).status == "incomplete"


def test_openai_errors(ai):
    with pytest.raises(openai.NotFoundError) as missing:
        ai.chat.completions.create(model="nope", messages=QUESTION)
    assert missing.value.body["type"] == "not_found_error"
    assert missing.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError, match="too short"):
        ai.chat.completions.create(model="demo", messages=[])
    with pytest.raises(openai.BadRequestError, match="does not support tools"):
        ai.chat.completions.create(model="demo", messages=QUESTION, tools=TOOLS)
    with pytest.raises(openai.BadRequestError, match="previous_response_id is not supported"):
        ai.responses.create(model="demo", input="x", previous_response_id="resp_1")


def test_messages(claude, expected):
    asked = {"model": "demo", "messages": QUESTION, "max_tokens": 24, "extra_body": GREEDY}
    answer = claude.messages.create(**asked)
    assert answer.content[0].text == expected
    assert answer._request_id.startswith("req_")
    with claude.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == expected
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == (answer.stop_reason, answer.usage.output_tokens)
    assert claude.messages.count_tokens(model="demo", messages=QUESTION).input_tokens == answer.usage.input_tokens
    stop = expected[5:8]
    stopped = claude.messages.create(**asked, stop_sequences=[stop])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)


def test_messages_tools(claude):
    choice = {"type": "any", "disable_parallel_tool_use": True}
    asked = {"model": "caller", "messages": QUESTION, "tools": CLAUDE_TOOLS, "tool_choice": choice, "max_tokens": 100}
    answer = claude.messages.create(**asked, extra_body=GREEDY)
    assert answer.stop_reason == "tool_use"
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    check_arguments(call.input)
    with claude.messages.stream(**asked, extra_body=GREEDY) as stream:
        final = stream.get_final_message()
    assert [block.input for block in final.content if block.type == "tool_use"] == [call.input]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    history = [*QUESTION, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    again = claude.messages.create(model="caller", messages=history, tools=CLAUDE_TOOLS, max_tokens=4)
    assert again.usage.input_tokens > answer.usage.input_tokens


def test_anthropic_errors(claude):
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="nope", messages=QUESTION, max_tokens=5)
    assert missing.value.body["error"]["type"] == "not_found_error"
    assert missing.value.request_id == missing.value.body["request_id"]
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model="demo", messages=QUESTION, max_tokens=0)


@pytest.mark.parametrize("leave", [1, 3])
def test_clients_that_leave(ai, job, leave):
    stream = ai.chat.completions.create(model="demo", messages=QUESTION, n=leave, stream=True)
    next(iter(stream))
    stream.close()
    assert ai.chat.completions.create(model="demo", messages=QUESTION, max_tokens=2).choices
