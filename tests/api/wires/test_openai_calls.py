"""Several answers, failures and calls of tools through /v1/chat/completions."""

from __future__ import annotations

import re

import pytest
from support.events import events
from support.openai_chat import BODY, CALLS, MORE, PATH, TOOLS, whole

from ollampi.api.engine_client import EngineError, Tokens


def test_several(client, engine):
    answer = whole(client, n=3, seed=7)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"Hello, world"}
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
    assert [request.sampling.seed for request in engine.requests] == [7, 8, 9]
    assert len({tuple(request.prompt) for request in engine.requests}) == 1
    assert all(stream.closed for stream in engine.streams)
    whole(client, n=2)
    assert [request.sampling.seed for request in engine.requests[3:]] == [None, None]
    whole(client, n=2, seed=2**63 - 1)
    assert [request.sampling.seed for request in engine.requests[5:]] == [2**63 - 1, 0]


def test_several_streamed(client, engine):
    body = BODY | {"n": 2, "stream": True, "stream_options": {"include_usage": True}}
    response = client.post(PATH, json=body)
    found = [value for _, value in events(response)]
    assert found[-1] == "[DONE]"
    assert found[-2]["usage"]["completion_tokens"] == 4
    choices = [value["choices"][0] for value in found[:-2]]
    for index in range(2):
        deltas = [choice["delta"] for choice in choices if choice["index"] == index]
        assert "".join(delta.get("content", "") for delta in deltas) == "Hello, world"
        assert [("role" in delta) for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop", "stop"]
    assert {choice["index"] for choice in choices[:2]} == {0, 1}  # in turns
    response.close()
    assert all(stream.closed for stream in engine.streams)


@pytest.mark.parametrize("stream", [True, False])
def test_one_of_several_fails(client, engine, stream):
    engine.events = [EngineError("busy", "full")]
    response = client.post(PATH, json=BODY | {"n": 2, "stream": stream})
    assert (response.status_code, response.json["error"]["type"]) == (503, "api_error")
    assert response.headers["Retry-After"]
    assert all(stream.closed for stream in engine.streams)


def test_an_engine_that_refuses_one_of_several(client, engine):
    start, engine.generate = (
        engine.generate,
        lambda request: start(request) if not engine.streams else (_ for _ in ()).throw(EngineError("shutdown", "bye")),
    )
    assert client.post(PATH, json=BODY | {"n": 2}).status_code == 503
    assert [stream.closed for stream in engine.streams] == [True]


def test_failure_in_the_middle(client, engine):
    engine.events = [Tokens(engine.tokenizer.encode("The").ids), EngineError("shutdown", "the server is stopping")]
    found = events(client.post(PATH, json=BODY | {"stream": True}))
    error = {"message": "the server is stopping", "type": "api_error", "param": None, "code": None}
    assert found[-1] == ("", {"error": error})


def test_calls(hermes, engine):
    engine.says("See." + MORE)
    choice = whole(hermes, model="hermes", tools=TOOLS)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    first, second = choice["message"]["tool_calls"]
    assert first | {"id": ""} == {
        "index": 0,
        "id": "",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Köln"}'},
    }
    assert (second["index"], second["function"]) == (1, {"name": "time", "arguments": "{}"})
    assert re.fullmatch("call_[a-z0-9]{8}", first["id"])
    engine.says(CALLS)
    assert whole(hermes, model="hermes", tools=TOOLS)["choices"][0]["message"]["content"] is None


def test_calls_streamed(hermes, engine):
    engine.says(MORE)
    body = BODY | {"model": "hermes", "tools": TOOLS, "stream": True}
    choices = [value["choices"][0] for _, value in events(hermes.post(PATH, json=body))[:-1]]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert [(c["index"], c["function"]["name"], c["function"]["arguments"]) for c in calls] == [
        (0, "weather", '{"city":"Köln"}'),
        (1, "time", "{}"),
    ]
    assert choices[-1] == {"index": 0, "delta": {}, "finish_reason": "tool_calls"}


def test_tool_choice(hermes, engine):
    engine.says(CALLS)
    choice = {"type": "function", "function": {"name": "weather"}}
    for value, forced in (("none", False), ("auto", False), ("required", True), (choice, True)):
        whole(hermes, model="hermes", tools=TOOLS, tool_choice=value)
        assert (engine.requests[-1].grammar is not None) == forced
    engine.says(MORE)
    message = whole(hermes, model="hermes", tools=TOOLS, parallel_tool_calls=False)["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1


def test_unknown_model_path_and_key(client):
    response = client.post(PATH, json=BODY | {"model": "nope"})
    error = {"message": "model 'nope' not found", "type": "not_found_error", "param": None, "code": None}
    assert (response.status_code, response.json) == (404, {"error": error})
    response = client.get(PATH)
    assert (response.status_code, response.json["error"]["type"]) == (405, "api_error")
    response = client.post("/v1/nope", json={})
    assert (response.status_code, response.json["error"]["type"]) == (404, "not_found_error")
