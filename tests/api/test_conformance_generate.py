"""Rows of the table of conformance about /api/generate and /api/chat that no other test pins."""

from __future__ import annotations

import json

import pytest

ONE = [{"role": "user", "content": "hi"}]


def generate(client, **body):
    return client.post("/api/generate", json={"model": "demo", "prompt": "x", "stream": False} | body)


def rendered(client, route, **body):
    """Return the prompt of a request that generates nothing."""
    fields = {"model": "chatty", "_debug_render_only": True} | body
    return client.post(f"/api/{route}", json=fields).json["_debug_info"]["rendered_template"]


@pytest.mark.parametrize("fields", [{"context": ["x"]}, {"raw": True, "context": [1]}, {"suffix": "y"}])
def test_fields_are_checked_also_where_a_model_is_only_loaded(client, engine, fields):
    assert generate(client, prompt="", **fields).status_code == 400
    assert not engine.calls


@pytest.mark.parametrize("route", ["generate", "chat"])
@pytest.mark.parametrize(("stream", "kind"), [(None, "x-ndjson"), (True, "x-ndjson"), (False, "json; charset=utf-8")])
def test_streams_are_on_unless_turned_off(client, route, stream, kind):
    body = {"model": "chatty", "prompt": "x", "messages": ONE}
    for fields in (body | {"stream": stream}, body if stream is None else body | {"stream": stream}):
        assert client.post(f"/api/{route}", json=fields).content_type == f"application/{kind}"


def test_fields_that_nobody_knows_are_ignored(client):
    assert generate(client, unknown={"a": [1]}, messages=5, keepalive="x").status_code == 200


def test_a_template_of_the_request_replaces_the_models(client):
    text = rendered(client, "generate", prompt="hi", system="S", template="[{{ .System }}|{{ .Prompt }}]")
    assert text == "[S|hi]"


def test_raw_prompts_go_to_the_model_untouched_and_bring_no_context(client, engine):
    answer = generate(client, model="chatty", prompt="hi", raw=True).json
    assert engine.requests[0].prompt == engine.tokenizer.encode("hi").ids
    assert "context" not in answer


def test_roles_are_read_in_lower_case(client):
    assert rendered(client, "chat", messages=[{"role": "USER", "content": "hi"}]) == rendered(
        client, "chat", messages=ONE
    )


@pytest.mark.parametrize("think", [True, False, "low", "medium", "high", "max"])
def test_think_takes_a_switch_or_a_level(client, think):
    assert client.post("/api/chat", json={"model": "thinker", "messages": ONE, "think": think}).status_code == 200


def test_think_false_is_allowed_for_any_model(client):
    assert generate(client, think=False).status_code == 200


def test_the_text_about_wrong_levels_names_those_allowed(client):
    text = generate(client, model="thinker", think="very").json["error"]
    assert all(f'"{level}"' in text for level in ("low", "medium", "high", "max"))


def test_calls_in_the_history_are_taken(client):
    call = {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}
    messages = [*ONE, {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call]}]
    assert client.post("/api/chat", json={"model": "chatty", "messages": messages}).status_code == 200


def test_results_of_tools_are_messages(client):
    messages = [*ONE, {"role": "tool", "content": "4", "tool_name": "add", "tool_call_id": "call_1"}]
    assert "tool\n4" in rendered(client, "chat", messages=messages)


def test_the_whole_answer_is_the_sum_of_the_streamed_one(client):
    parts = [json.loads(line) for line in generate(client, stream=True).text.splitlines()]
    assert generate(client).json["response"] == "".join(part["response"] for part in parts)


def test_keep_alive_reaches_the_engine_with_each_request(client, engine):
    for sent, seconds in (("10m", 600.0), (0, 0.0), (-1, -1.0), (1.5, 1.5), (None, None)):
        generate(client, keep_alive=sent)
        assert engine.requests[-1].keep_alive_s == seconds
    assert generate(client, keep_alive="300").status_code == 400
