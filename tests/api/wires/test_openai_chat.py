"""Pin POST /v1/chat/completions: its objects, its events, and what each field asks of the engine."""

from __future__ import annotations

import pytest
from support.events import events
from support.openai_chat import BODY, PATH, TOOLS, USAGE, masked, refused, whole

from ollampi.api.engine_client import Done, Tokens
from ollampi.mpiruntime.request import Grammar, TokenLogprob, Usage


def test_whole(client):
    assert masked(whole(client)) == {
        "id": "ID",
        "object": "chat.completion",
        "created": 0,
        "model": "chatty",
        "system_fingerprint": "fp_ollama",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello, world"}, "finish_reason": "stop"}],
        "usage": USAGE,
    }


def test_stream(client):
    found = events(client.post(PATH, json=BODY | {"stream": True, "stream_options": {"include_usage": True}}))
    assert all(name == "" for name, _ in found)
    *chunks, usage, done = [value for _, value in found]
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    head = {"id": "ID", "object": "chat.completion.chunk", "created": 0, "model": "chatty"}
    head["system_fingerprint"] = "fp_ollama"
    assert masked(usage) == head | {"choices": [], "usage": USAGE}
    first, *rest, last = [masked(chunk) for chunk in chunks]
    text = first["choices"][0]["delta"]["content"]
    delta = {"role": "assistant", "content": text}
    assert first == head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    for chunk in rest:
        content = chunk["choices"][0]["delta"]["content"]
        assert chunk == head | {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}
        text += content
    assert text == "Hello, world"
    assert last == head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def test_stream_without_usage_and_without_text(client, engine):
    engine.events = [Done("length", Usage(prompt_tokens=9))]
    (_, chunk), (_, done) = events(client.post(PATH, json=BODY | {"stream": True}))
    assert chunk["choices"] == [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": "length"}]
    assert done == "[DONE]"


def test_options(client, engine):
    sampling = {"temperature": 0.5, "top_p": 0.25, "frequency_penalty": 0.5, "presence_penalty": -0.5, "seed": 7}
    whole(client, **sampling, stop="a stop", max_tokens=5, logit_bias={"12": -100, "3": 1.5}, user="me", metadata={})
    request = engine.requests[0]
    assert sampling.items() <= vars(request.sampling).items()
    assert request.sampling.logit_bias == [(12, -100.0), (3, 1.5)]
    assert request.max_tokens == 5
    whole(client, max_tokens=5, max_completion_tokens=6, stop=["a", "b"], seed=None, service_tier="auto")
    request = engine.requests[1]
    assert (request.max_tokens, request.sampling.seed) == (6, None)
    assert (request.sampling.temperature, request.sampling.top_p) == (1.0, 1.0)


@pytest.mark.parametrize("stop", ["wn fo", ["never", "wn fo"]])
def test_stop(client, engine, stop):
    engine.says("The quick brown fox jumps")
    choice = whole(client, stop=stop)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("The quick bro", "stop")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("limit", [10**6, 2**31, 2**63, 10**400])
def test_large_limits_are_clamped(client, engine, name, limit):
    whole(client, **{name: limit})
    assert engine.requests[0].max_tokens == 640  # ten contexts


@pytest.mark.parametrize("value", [-(2**63), -1, 0, 9, 10**6, 2**31, 2**63, 10**400, 1.5, 1e308, "1", True, [], {}])
@pytest.mark.parametrize("name", ["n", "max_tokens", "max_completion_tokens", "top_logprobs"])
def test_odd_counts(client, name, value):
    response = client.post(PATH, json=BODY | {"logprobs": True, name: value})
    assert response.status_code in (200, 400)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        assert response.status_code == 400
        assert f'"{name}' in response.json["error"]["message"]


@pytest.mark.parametrize("value", [-1, 3, 1e9, 1e400, 10**400, "1", True, [], {}])
@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "logit_bias"]
)
def test_odd_numbers(client, name, value):
    assert client.post(PATH, json=BODY | {name: value}).status_code in (200, 400)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": []}, "[] is too short - 'messages'"),
        ({"model": ""}, "model is required"),
        ({"n": 9}, 'json: field "n": Input should be less than or equal to 8'),
        ({"logit_bias": {"x": 1}}, 'json: field "logit_bias'),
        ({"logit_bias": {"1": 101}}, 'json: field "logit_bias'),
        ({"stop": [1]}, 'json: field "stop[0]" must be of type string, not number'),
        ({"reasoning_effort": "huge"}, "reasoning_effort is 'huge'; use one of none, minimal, low"),
        ({"reasoning_effort": "high"}, '"chatty" does not support thinking'),
        ({"response_format": {"type": "xml"}}, "response_format.type is 'xml'; use text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format has no schema"),
        ({"messages": [{"role": "a b", "content": ""}]}, "role 'a b' must be a word"),
        ({"messages": [{"content": ""}]}, 'json: field "messages[0].role" is missing'),
        ({"messages": [{"role": "user", "content": 5}]}, 'json: field "messages[0].content" must be of type array'),
        ({"tools": TOOLS}, "registry.ollama.ai/library/chatty:latest does not support tools"),
    ],
)
def test_refusals(client, engine, body, text):
    assert refused(client, **body).startswith(text)
    assert not engine.requests


def part(**values):
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, values]}]}


PNG = "data:image/png;base64,aGk="


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (part(type="image_url", image_url={"url": PNG}), "registry.ollama.ai/library/chatty:latest does not support"),
        (part(type="image_url", image_url=PNG), "registry.ollama.ai/library/chatty:latest does not support vision"),
        (part(type="image_url", image_url={"url": "http://x/a.png"}), "messages[0].content[1].image_url must be a URL"),
        (part(type="image_url", image_url={"url": "data:image/gif;base64,x"}), "messages[0].content[1].image_url must"),
        (part(type="image_url", image_url={"url": "data:image/svg+xml,x"}), "messages[0].content[1].image_url must"),
        (part(type="image_url"), "messages[0].content[1].image_url must be a URL"),
        (part(type="input_audio", input_audio={"data": "", "format": "wav"}), "messages[0].content[1].type is 'input"),
        (part(text="x"), 'json: field "messages[0].content[1].type" is missing'),
    ],
)
def test_parts_that_are_refused(client, body, text):
    assert refused(client, **body).startswith(text)


def test_messages(hermes, prompted):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":"\\ud800"}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    whole(hermes, model="hermes", messages=messages)
    assert prompted() == (
        'system: Be brief.;user: a\nb;assistant:  CALL c1 f {"x": "\ufffd"} THOUGHT hm;tool: 42 OF f c1;'
    )


@pytest.mark.parametrize("arguments", ["[", "[]", "NaN", "5", "[" * 100_000, '{"a": NaN}', "1" * 5000])
def test_arguments_that_are_no_object(client, arguments):
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    text = refused(client, messages=[{"role": "assistant", "tool_calls": calls}])
    assert text == "messages[0].tool_calls[0].function.arguments must be the JSON text of an object"


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar("schema", '{"type":"object"}')),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "integer"}}},
            Grammar("schema", '{"type": "integer"}'),
        ),
    ],
)
def test_response_format(client, engine, form, grammar):
    whole(client, response_format=form)
    assert engine.requests[0].grammar == grammar


@pytest.mark.parametrize(
    ("body", "thinks"),
    [
        ({}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, True),
        ({"reasoning": {"effort": "xhigh"}}, True),
        ({"reasoning": {"effort": "none"}}, False),
    ],
)
def test_reasoning(client, engine, body, thinks):
    engine.says("<think>\nhm\n</think>\n\nThe dog")
    message = whole(client, model="thinker", **body)["choices"][0]["message"]
    assert message.get("reasoning") == ("hm\n" if thinks else None)
    found = [
        v["choices"][0]["delta"]
        for _, v in events(client.post(PATH, json=BODY | body | {"model": "thinker", "stream": True}))[:-1]
    ]
    assert "".join(delta.get("reasoning", "") for delta in found) == ("hm\n" if thinks else "")
    assert "".join(delta.get("content", "") for delta in found) == message["content"]
    assert [("role" in delta) for delta in found] == [True] + [False] * (len(found) - 1)


def test_logprobs(client, engine):
    engine.says("Hello", logprobs=True)
    choice = whole(client, logprobs=True, top_logprobs=2)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert bytes(b for entry in entries for b in entry["bytes"]) == b"Hello"
    assert list(entries[0]) == ["token", "logprob", "bytes", "top_logprobs"]
    assert len(entries[0]["top_logprobs"]) == 2
    assert (engine.requests[0].sampling.logprobs, engine.requests[0].sampling.top_logprobs) == (True, 2)
    found = events(client.post(PATH, json=BODY | {"logprobs": True, "stream": True}))[:-1]
    entries = [e for _, v in found for e in (v["choices"][0].get("logprobs") or {"content": []})["content"]]
    assert bytes(b for entry in entries for b in entry["bytes"]) == b"Hello"


def test_logprobs_without_alternatives(client, engine):
    engine.events = [Tokens([300], [TokenLogprob(300, -0.5, [])]), Done("stop", Usage())]
    assert whole(client, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
