"""Pin POST /v1/messages and count_tokens: objects, events, errors, and what each field asks of the engine."""

from __future__ import annotations

import re

import pytest
from support.events import events

from ollampi.api.engine_client import Done, EngineError, Tokens
from ollampi.api.wires.anthropic_answers import AnsweredMessage
from ollampi.mpiruntime.request import Grammar, Usage

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
BODY = {"model": "chatty", "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]}
TOOLS = [{"name": "weather", "description": "d", "input_schema": {"type": "object"}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
USAGE = {"input_tokens": 9, "output_tokens": 2}


def masked(value):
    """Return an object with its id replaced, for comparing with a golden one."""
    assert re.fullmatch("msg_[0-9a-f]{24}", value["id"])
    return value | {"id": "ID"}


def message(*content, **more):
    head = {"id": "ID", "type": "message", "role": "assistant", "model": "chatty", "content": list(content)}
    return head | {"stop_reason": "end_turn", "stop_sequence": None, "usage": USAGE} | more


def whole(client, **body):
    response = client.post(PATH, json=BODY | body)
    assert response.status_code == 200, response.text
    assert response.headers["request-id"] == response.headers["X-Request-Id"]
    AnsweredMessage.model_validate(response.json)
    return response.json


def stream(client, **body):
    """Return the events of an answer, with one text for each run of deltas."""
    found = events(client.post(PATH, json=BODY | body | {"stream": True}))
    assert all(value["type"] == name for name, value in found)
    return found


def text_of(found, kind="text"):
    deltas = [value["delta"] for name, value in found if name == "content_block_delta"]
    return "".join(delta[kind] for delta in deltas if delta["type"] == f"{kind}_delta")


def test_whole(client):
    assert masked(whole(client)) == message({"type": "text", "text": "Hello, world"})


def test_stream(client, engine):
    found = stream(client)
    deltas = [value for name, value in found if name == "content_block_delta"]
    assert text_of(found) == "Hello, world"
    for value in deltas:
        delta = {"type": "text_delta", "text": value["delta"]["text"]}
        assert value == {"type": "content_block_delta", "index": 0, "delta": delta}
    start = found[0][1]["message"]
    usage = {"input_tokens": len(engine.requests[0].prompt), "output_tokens": 0}
    assert masked(start) == message(stop_reason=None, usage=usage)
    rest = [value for name, value in found if name != "content_block_delta"][1:]
    assert rest == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE},
        {"type": "message_stop"},
    ]


def test_empty_answers(client, engine):
    engine.events = [Done("stop", Usage(9, 2))]
    assert masked(whole(client)) == message()
    assert [name for name, _ in stream(client)] == ["message_start", "message_delta", "message_stop"]


def test_stop_sequences(client, engine):
    engine.says("The quick brown fox jumps")
    answer = whole(client, stop_sequences=["never", "wn fo", "fox"])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "wn fo")
    assert answer["content"] == [{"type": "text", "text": "The quick bro"}]
    found = stream(client, stop_sequences=["wn fo"])
    assert text_of(found) == "The quick bro"
    assert found[-2][1]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "wn fo"}


def test_cut_answers(client, engine):
    engine.says("Hello", reason="length")
    assert whole(client, stop_sequences=["x"])["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("thinking", "thinks"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive"}, True),
    ],
)
def test_thinking(client, engine, thinking, thinks):
    engine.says("<think>\nhmm\n</think>\n\nThe dog")
    body = {"model": "thinker", "thinking": thinking, "output_config": {"effort": "low"}}
    content = whole(client, **body)["content"]
    found = stream(client, **body)
    starts = [value["content_block"]["type"] for name, value in found if name == "content_block_start"]
    if thinks:
        thought = {"type": "thinking", "thinking": "hmm\n", "signature": ""}
        assert content == [thought, {"type": "text", "text": "The dog"}]
        assert (text_of(found, "thinking"), text_of(found)) == ("hmm\n", "The dog")
        assert starts == ["thinking", "text"]
        assert [value["index"] for name, value in found if name == "content_block_stop"] == [0, 1]
    else:
        assert [block["type"] for block in content] == starts == ["text"]


def test_thinking_is_dropped_where_the_model_cannot(client):
    assert whole(client, thinking={"type": "enabled", "budget_tokens": 1024})["content"][0]["type"] == "text"


def test_calls(hermes, engine):
    engine.says("See." + CALL)
    answer = whole(hermes, model="hermes", tools=TOOLS)
    assert answer["stop_reason"] == "tool_use"
    _, call = answer["content"]
    assert re.fullmatch("toolu_[0-9a-f]{24}", call["id"])
    assert call | {"id": ""} == {"type": "tool_use", "id": "", "name": "weather", "input": {"city": "Köln"}}
    found = stream(hermes, model="hermes", tools=TOOLS)
    start = next(v for name, v in found if name == "content_block_start" and v["content_block"]["type"] == "tool_use")
    assert start["index"] == 1
    assert start["content_block"] | {"id": ""} == {"type": "tool_use", "id": "", "name": "weather", "input": {}}
    deltas = [value["delta"] for name, value in found if name == "content_block_delta" and value["index"] == 1]
    assert deltas == [{"type": "input_json_delta", "partial_json": '{"city":"Köln"}'}]
    assert found[-2][1]["delta"]["stop_reason"] == "tool_use"
    assert text_of(found) == "See."


def test_tool_choice(hermes, engine):
    engine.says(CALL + "\n" + CALL)
    choices = [{"type": "none"}, {"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "weather"}]
    for choice, forced in zip(choices, (False, False, True, True), strict=True):
        whole(hermes, model="hermes", tools=TOOLS, tool_choice=choice)
        assert (engine.requests[-1].grammar is not None) == forced
    assert len(whole(hermes, model="hermes", tools=TOOLS)["content"]) == 2
    one = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(whole(hermes, model="hermes", tools=TOOLS, tool_choice=one)["content"]) == 1


def test_messages(hermes, prompted):
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "c"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
                {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
                {"type": "web_search_tool_result", "tool_use_id": "s1", "content": {"type": "error"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "42"}]},
                {"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": True},
                {"type": "text", "text": "d"},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1"}]},
    ]
    system = [{"type": "text", "text": "s"}, {"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}}]
    whole(hermes, model="hermes", messages=messages, system=system)
    assert prompted() == (
        'system: s\nt;user: a\nb;assistant: c CALL t1 f {"x": 1} CALL t2 g {} THOUGHT hm;'
        "tool: 42 OF g t2;tool: error: no OF f t1;user: d;tool:  OF f t1;"
    )
    whole(hermes, model="hermes", system="s")
    assert prompted() == "system: s;user: hi;"


def test_options(client, engine):
    whole(client, temperature=0.5, top_p=0.25, top_k=7, stop_sequences=["x"], metadata={"user_id": "me"})
    request = engine.requests[0]
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.5, 0.25, 7)
    assert request.max_tokens == 20
    form = {"format": {"type": "json_schema", "schema": {"type": "integer"}}}
    whole(client, output_config=form)
    assert engine.requests[1].grammar == Grammar("schema", '{"type": "integer"}')
    for limit in (10**6, 2**31, 2**63, 10**400):
        whole(client, max_tokens=limit, top_k=limit)
        assert engine.requests[-1].max_tokens == 640


def test_count(client, engine):
    system = [{"type": "text", "text": "Be brief."}]
    response = client.post(COUNT, json={"model": "chatty", "messages": BODY["messages"], "system": system})
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert response.json == {"input_tokens": len(engine.tokenizer.encode(text).ids)}
    assert response.headers["request-id"]
    long = [{"role": "user", "content": "x" * 5000}]
    assert client.post(COUNT, json={"model": "chatty", "messages": long}).json["input_tokens"] > 64
    assert not engine.requests


def test_count_with_tools(hermes, engine):
    body = {"model": "hermes", "messages": BODY["messages"]}
    without = hermes.post(COUNT, json=body).json["input_tokens"]
    assert hermes.post(COUNT, json=body | {"tools": TOOLS}).json["input_tokens"] > without


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"max_tokens": None}, 400, 'json: field "max_tokens" is missing'),
        ({"max_tokens": 0}, 400, 'json: field "max_tokens"'),
        ({"max_tokens": -1}, 400, 'json: field "max_tokens"'),
        ({"max_tokens": "5"}, 400, 'json: field "max_tokens" must be of type integer, not string'),
        ({"temperature": 1.1}, 400, 'json: field "temperature"'),
        ({"temperature": -0.1}, 400, 'json: field "temperature"'),
        ({"top_p": 2}, 400, 'option "top_p" is 2, but it must be between'),
        ({"top_k": -1}, 400, 'json: field "top_k"'),
        ({"messages": []}, 400, "messages: at least one message is required"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role is 'robot'"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, 400, "messages[0].content[0].type 'docu"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "messages[0].content[0].source.type"),
        ({"system": [{"type": "image"}]}, 400, "system[0].type is 'image'; only text is taken here"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            400,
            "tools[0].type 'web_search_20250305'",
        ),
        ({"tools": TOOLS}, 400, "registry.ollama.ai/library/chatty:latest does not support tools"),
        ({"tool_choice": {"type": "some"}}, 400, "tool_choice.type is 'some'"),
        ({"thinking": {"type": "some"}}, 400, "thinking.type is 'some'"),
        ({"model": "claude"}, 404, "model 'claude' not found"),
        ({"model": ""}, 404, "model '' not found"),
    ],
)
def test_refusals(client, engine, body, status, text):
    response = client.post(PATH, json=BODY | body, headers={"X-Request-Id": "req_1"})
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    assert (response.status_code, response.json["type"], response.json["request_id"]) == (status, "error", "req_1")
    assert (response.json["error"]["type"], response.headers["request-id"]) == (kind, "req_1")
    assert response.json["error"]["message"].startswith(text)
    assert not engine.requests


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"type": "base64", "media_type": "image/png", "data": "aGk="}, "does not support vision"),
        ({"type": "base64", "media_type": "text/html", "data": "aGk="}, "media_type is 'text/html'"),
        ({"type": "url", "url": "http://x/a.png"}, "source.type must be base64"),
    ],
)
@pytest.mark.parametrize("inner", [True, False])
def test_images(client, source, text, inner):
    block = {"type": "image", "source": source}
    content = [{"type": "tool_result", "tool_use_id": "t", "content": [block]}] if inner else [block]
    response = client.post(PATH, json=BODY | {"messages": [{"role": "user", "content": content}]})
    assert response.status_code == 400
    assert text in response.json["error"]["message"]


def test_failures(client, engine):
    engine.events = [Tokens(engine.tokenizer.encode("The").ids), EngineError("shutdown", "the server is stopping")]
    response = client.post(PATH, json=BODY | {"stream": True}, headers={"X-Request-Id": "req_2"})
    error = {"type": "overloaded_error", "message": "the server is stopping"}
    assert events(response)[-1] == ("error", {"type": "error", "error": error, "request_id": "req_2"})
    response = client.post("/v1/messages/nope", json={})
    assert (response.status_code, response.json["error"]["type"]) == (404, "not_found_error")
