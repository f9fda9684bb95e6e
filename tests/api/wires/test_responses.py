"""Pin POST /v1/responses: its objects, the order of its events, and what each field asks of the engine."""

from __future__ import annotations

import re
import time

import pytest
from support.events import events

from ollampi.api.engine_client import Done, EngineError, Tokens
from ollampi.api.wires.openai_answers import ResponseObject
from ollampi.mpiruntime.request import Grammar, Usage

PATH = "/v1/responses"
BODY = {"model": "chatty", "input": "hi"}
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 11,
}
IDS = re.compile(r"^(resp|msg|rs|fc)_[0-9a-f]{32}$|^(call)_[a-z0-9]{8}$")


def masked(value):
    """Return a value with ids and times replaced, for comparing with a golden one."""
    if isinstance(value, dict):
        return {key: 0 if key == "created_at" else masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item) for item in value]
    found = IDS.match(value) if isinstance(value, str) else None
    return (found[1] or found[2]).upper() if found else value


def part(text):
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def message(text, status="completed"):
    content = [] if status == "in_progress" else [part(text)]
    return {"id": "MSG", "type": "message", "status": status, "role": "assistant", "content": content}


def response(status="completed", output=(), **more):
    return {
        "id": "RESP",
        "object": "response",
        "created_at": 0,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": "chatty",
        "output": list(output),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None if status in ("in_progress", "failed") else USAGE,
        "user": None,
        "metadata": {},
    } | more


def whole(client, **body):
    answer = client.post(PATH, json=BODY | body)
    assert answer.status_code == 200, answer.text
    ResponseObject.model_validate(answer.json)
    return answer.json


def stream(client, **body):
    """Return the events of an answer without their numbers, which must count."""
    found = events(client.post(PATH, json=BODY | body | {"stream": True}))
    assert [value.pop("sequence_number") for _, value in found] == list(range(len(found)))
    assert all(value.pop("type") == name for name, value in found)
    return [(name.removeprefix("response."), masked(value)) for name, value in found]


def test_whole(client):
    answer = whole(client)
    assert abs(answer["created_at"] - time.time()) < 60
    assert masked(answer) == response(output=[message("Hello, world")])


def test_stream(client):
    found = stream(client)
    deltas = [value["delta"] for name, value in found if name == "output_text.delta"]
    assert "".join(deltas) == "Hello, world"
    place = {"item_id": "MSG", "output_index": 0, "content_index": 0}
    assert found == [
        ("created", {"response": response("in_progress")}),
        ("in_progress", {"response": response("in_progress")}),
        ("output_item.added", {"output_index": 0, "item": message("", "in_progress")}),
        ("content_part.added", {**place, "part": part("")}),
        *[("output_text.delta", {**place, "logprobs": [], "delta": delta}) for delta in deltas],
        ("output_text.done", {**place, "logprobs": [], "text": "Hello, world"}),
        ("content_part.done", {**place, "part": part("Hello, world")}),
        ("output_item.done", {"output_index": 0, "item": message("Hello, world")}),
        ("completed", {"response": response(output=[message("Hello, world")])}),
    ]


def test_cut_answers(client, engine):
    engine.says("Hello", reason="length")
    end = response("incomplete", [message("Hello", "incomplete")], incomplete_details={"reason": "max_output_tokens"})
    assert masked(whole(client)) == end
    *_, item, last = stream(client)
    assert item == ("output_item.done", {"output_index": 0, "item": message("Hello", "incomplete")})
    assert last == ("incomplete", {"response": end})


def test_empty_answers(client, engine):
    engine.events = [Done("stop", Usage(9, 2))]
    assert masked(whole(client)) == response(output=[message("")])
    names = [name for name, _ in stream(client)]
    assert names == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_reasoning(client, engine):
    engine.says("<think>\nhmm\n</think>\n\nThe dog")
    thought = {"id": "RS", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hmm\n"}]}
    output = masked(whole(client, model="thinker", reasoning={"effort": "low", "summary": "auto"})["output"])
    assert output == [thought, message("The dog")]
    found = stream(client, model="thinker")
    names = list(dict.fromkeys(name for name, _ in found))
    assert names[2:8] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    values = [value for name, value in found if name == "reasoning_summary_text.delta"]
    assert "".join(value["delta"] for value in values) == "hmm\n"
    assert all(
        value | {"delta": ""} == {"item_id": "RS", "output_index": 0, "summary_index": 0, "delta": ""}
        for value in values
    )
    assert {value["output_index"] for name, value in found if name == "output_text.delta"} == {1}
    assert found[-1][1]["response"]["output"] == output
    assert [item["type"] for item in whole(client, model="thinker", reasoning={"effort": "none"})["output"]] == [
        "message"
    ]


def test_calls(hermes, engine):
    engine.says("See." + CALL)
    call = {"id": "FC", "type": "function_call", "status": "completed", "call_id": "CALL", "name": "weather"}
    call |= {"arguments": '{"city":"Köln"}'}
    answer = whole(hermes, model="hermes", tools=[TOOL])
    assert masked(answer["output"]) == [message("See."), call]
    assert answer["tools"][0]["name"] == "weather"
    found = stream(hermes, model="hermes", tools=[TOOL])
    place = {"item_id": "FC", "output_index": 1}
    assert found[-5:-1] == [
        ("output_item.added", {"output_index": 1, "item": call | {"status": "in_progress", "arguments": ""}}),
        ("function_call_arguments.delta", {**place, "delta": call["arguments"]}),
        ("function_call_arguments.done", {**place, "name": "weather", "arguments": call["arguments"]}),
        ("output_item.done", {"output_index": 1, "item": call}),
    ]
    assert found[-1][1]["response"]["output"] == [message("See."), call]
    engine.says(CALL)
    assert masked(whole(hermes, model="hermes", tools=[TOOL])["output"]) == [call]
    assert engine.requests[-1].grammar is None
    whole(hermes, model="hermes", tools=[TOOL], tool_choice={"type": "function", "name": "weather"})
    assert engine.requests[-1].grammar is not None


def test_input(hermes, prompted):
    items = [
        {"role": "developer", "content": "D"},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "encrypted_content": None,
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "c2", "output": "42"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "43"}]},
        {"type": "web_search_call", "status": "completed"},
    ]
    whole(hermes, model="hermes", input=items, instructions="I")
    assert prompted() == (
        'system: I;system: D;user: a\nb;assistant: c CALL c1 f {"x": 1} CALL c2 g {} THOUGHT hm;'
        "tool: 42 OF g c2;tool: 43 OF f c1;"
    )


def test_options(client, engine):
    whole(client, temperature=0.5, top_p=0.25, max_output_tokens=5, metadata={"a": "b"}, store=True, include=[])
    request = engine.requests[0]
    assert (request.sampling.temperature, request.sampling.top_p, request.max_tokens) == (0.5, 0.25, 5)
    schema = {"type": "json_schema", "name": "x", "strict": True, "schema": {"type": "integer"}}
    assert whole(client, text={"format": schema})["text"] == {"format": schema}
    assert engine.requests[1].grammar == Grammar("schema", '{"type": "integer"}')
    whole(client, text={"format": {"type": "json_object"}})
    assert engine.requests[2].grammar == Grammar("schema", '{"type":"object"}')
    for limit in (10**6, 2**31, 2**63, 10**400):
        whole(client, max_output_tokens=limit)
        assert engine.requests[-1].max_tokens == 640


def test_truncation(client, engine):
    items = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog."}] * 20
    error = client.post(PATH, json=BODY | {"input": items}).json["error"]
    assert error["message"].startswith("the prompt is longer than the context length")
    whole(client, input=items, truncation="auto")
    assert len(engine.requests[0].prompt) <= 63


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"conversation": "conv_1"}, "conversation is not supported"),
        ({"conversation": {"id": "conv_1"}}, "conversation is not supported"),
        ({"background": True}, "background is not supported"),
        ({"input": ""}, "input is empty"),
        ({"input": None}, "input is empty"),
        ({"input": []}, "input is empty"),
        ({"input": 5}, 'json: field "input" must be of type array, not number'),
        ({"input": [{"type": "computer_call"}]}, "input[0].type 'computer_call' is not supported"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type is 'input_file'",
        ),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "["}]}, "input[0].arguments must be the JSON"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type 'web_search' is not supported; use function"),
        ({"truncation": "middle"}, "truncation is 'middle'; use auto or disabled"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type is 'grammar'"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort is 'huge'"),
        ({"max_output_tokens": 0}, 'json: field "max_output_tokens"'),
        ({"max_output_tokens": -1}, 'json: field "max_output_tokens"'),
    ],
)
def test_refusals(client, engine, body, text):
    answer = client.post(PATH, json=BODY | body)
    assert (answer.status_code, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert answer.json["error"]["message"].startswith(text)
    assert not engine.requests


def test_images(client):
    for url in ("data:image/png;base64,aGk=", {"url": "data:image/png;base64,aGk="}):
        content = [{"type": "input_image", "image_url": url, "detail": "auto"}]
        answer = client.post(PATH, json=BODY | {"input": [{"role": "user", "content": content}]})
        assert answer.json["error"]["message"].endswith("chatty:latest does not support vision")
    content[0]["image_url"] = "https://example.com/a.png"
    answer = client.post(PATH, json=BODY | {"input": [{"role": "user", "content": content}]})
    assert answer.json["error"]["message"].startswith("input[0].content[0].image_url must be a URL that begins with")


def test_failure_in_the_middle(client, engine):
    engine.events = [Tokens(engine.tokenizer.encode("The").ids), EngineError("shutdown", "the server is stopping")]
    name, value = stream(client)[-1]
    error = {"code": "server_error", "message": "the server is stopping"}
    assert (name, value) == ("failed", {"response": response("failed", error=error)})


def test_failure_at_the_beginning(client, engine):
    engine.events = [EngineError("shutdown", "the server is stopping")]
    assert client.post(PATH, json=BODY | {"stream": True}).status_code == 503
