"""Tools through /api/chat: calls in the answer, streamed or whole, and calls that are forced."""

from __future__ import annotations

import json

import pytest

TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    for name in ("weather", "time")
]
CALLS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
MORE = CALLS + '\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
BODY = {"model": "hermes", "messages": [{"role": "user", "content": "x"}], "tools": TOOLS}
HERMES = (
    "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
)


@pytest.fixture
def client(make_model, make_client, tmp_path):
    make_model(tmp_path / "hermes", HERMES, 4096)
    make_model(tmp_path / "plain", None, 4096)
    return make_client(tmp_path)


def chat(client, **body):
    response = client.post("/api/chat", json=BODY | {"stream": False} | body)
    assert response.status_code == 200, response.text
    return response.json


def names(calls):
    return [(call["function"]["index"], call["function"]["name"], call["function"]["arguments"]) for call in calls]


def test_calls_of_a_whole_answer(client, engine):
    engine.says("Let me see." + MORE)
    answer = chat(client)
    assert answer["message"]["content"].strip() == "Let me see."
    assert names(answer["message"]["tool_calls"]) == [(0, "weather", {"city": "Köln"}), (1, "time", {})]
    assert all(call["id"].startswith("call_") and len(call["id"]) == 13 for call in answer["message"]["tool_calls"])
    assert answer["done_reason"] == "stop"


def test_calls_of_a_streamed_answer(client, engine):
    engine.says(MORE)
    lines = [json.loads(line) for line in client.post("/api/chat", json=BODY).text.splitlines()]
    calls = [call for line in lines for call in line["message"].get("tool_calls", ())]
    assert names(calls) == [(0, "weather", {"city": "Köln"}), (1, "time", {})]
    assert "".join(line["message"]["content"] for line in lines) == ""
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


@pytest.mark.parametrize("stream", [True, False])
def test_one_call_only(client, engine, stream):
    engine.says(MORE + " and text")
    response = client.post("/api/chat", json=BODY | {"stream": stream, "parallel_tool_calls": False})
    lines = [json.loads(line) for line in response.text.splitlines()]
    calls = [call for line in lines for call in line["message"].get("tool_calls", ())]
    assert names(calls) == [(0, "weather", {"city": "Köln"})]
    assert lines[-1]["done_reason"] == "stop"
    assert engine.streams[0].cancelled


def test_no_tools_no_calls(client, engine):
    engine.says(CALLS)
    assert chat(client, tools=[])["message"] == {"role": "assistant", "content": CALLS}
    assert chat(client, tool_choice="none")["message"] == {"role": "assistant", "content": CALLS}
    assert "Köln" in chat(client, tools=TOOLS[1:])["message"]["content"], "a tool that the request does not have"


def test_forced_calls(client, engine):
    engine.says(CALLS)
    for choice, count in (
        ("required", 2),
        ({"type": "function", "function": {"name": "time"}}, 1),
        ({"name": "time"}, 1),
    ):
        chat(client, tool_choice=choice)
        grammar = engine.requests[-1].grammar
        assert grammar.kind == "lark"
        assert sum(name in grammar.text for name in ("weather", "time")) == count
    chat(client, tool_choice="auto")
    assert engine.requests[-1].grammar is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"tools": [], "tool_choice": "required"}, "no tools"),
        ({"tool_choice": {"function": {"name": "nope"}}}, "weather, time"),
        ({"tool_choice": "maybe"}, "tool_choice must be"),
        ({"tool_choice": 5}, "tool_choice must be"),
        ({"tool_choice": {"function": {}}}, "tool_choice must be"),
        ({"tool_choice": "required", "format": "json"}, "leave one of them out"),
        ({"tools": [{"function": {"name": "a b"}}]}, "name must have"),
        ({"model": "plain"}, "registry.ollama.ai/library/plain:latest does not support tools"),
    ],
)
def test_what_cannot_be(client, body, text):
    response = client.post("/api/chat", json=BODY | body)
    assert response.status_code == 400
    assert text in response.json["error"]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be kind."}]])
def test_templates_that_look_for_tools_in_the_system_message(make_model, make_client, tmp_path, system):
    source = (
        "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] %}"
        "[{{ message['content'] }}<|tool|>{{ message['tools'] }}<|/tool|>]{% else %}{{ message['content'] }};"
        "{% endif %}{% endfor %}"
    )
    make_model(tmp_path / "phi", source, 4096)
    body = BODY | {"model": "phi", "messages": [*system, *BODY["messages"]], "_debug_render_only": True}
    text = make_client(tmp_path).post("/api/chat", json=body).json["_debug_info"]["rendered_template"]
    start, _, rest = text.partition("<|tool|>")
    assert start == ("[Be kind." if system else "[")
    told, _, end = rest.partition("<|/tool|>")
    assert json.loads(told) == TOOLS
    assert end == "]x;"


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_cut_off_a_forced_call_is_no_text(client, engine, stream):
    engine.says(CALLS + '\n<tool_call>\n{"name": "ti', reason="length")
    response = client.post("/api/chat", json=BODY | {"stream": stream, "tool_choice": "required"})
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == ""
    assert names(call for line in lines for call in line["message"].get("tool_calls", ())) == [
        (0, "weather", {"city": "Köln"})
    ]
    assert lines[-1]["done_reason"] == "length"


def test_a_named_tool_is_called_once(client, engine):
    engine.says(MORE)
    answer = chat(client, tool_choice={"function": {"name": "weather"}})
    assert names(answer["message"]["tool_calls"]) == [(0, "weather", {"city": "Köln"})]
    assert engine.streams[0].cancelled
