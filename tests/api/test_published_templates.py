"""What chat templates are made of renders as by transformers: one template for each family, in words of our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from ollampi.api.chat_template import ChatTemplates
from ollampi.mpiruntime.errors import RequestError

FOLDER = Path(__file__).resolve().parent.parent / "templates"
FAMILIES = {file.stem: file.read_text() for file in sorted(FOLDER.glob("*.jinja"))}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Tell the "weather".\nOf a place.',
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "enum": ["Köln", "<&>"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "unit": {"type": ["string", "null"]},
                },
                "required": ["place"],
            },
        },
    }
]
CALL = {"place": "Köln <b>", "days": [1, 2], "exact": True, "unit": None, "deep": {"ä": 0.5}}
HELLO = [{"role": "user", "content": " Hello <b> & 'you' 🙂 "}]
TALK = [
    {"role": "system", "content": " Be kind.\n"},
    *HELLO,
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello", "reasoning_content": "\nhm\n"},
    {"role": "user", "content": "<r>x</r>"},
]
CALLED = [
    *HELLO,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "call00000", "function": {"name": "weather", "arguments": CALL}}],
    },
    {"role": "tool", "name": "weather", "content": '{"sun": true}', "tool_call_id": "call00000"},
    {"role": "tool", "content": "rain", "tool_call_id": "call00000"},
    {"role": "assistant", "content": "Sun.\n"},
]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@pytest.fixture(scope="module")
def templates():
    return ChatTemplates()


@pytest.mark.parametrize("thinking", [None, True, False], ids=["plain", "think", "quick"])
@pytest.mark.parametrize("messages", [HELLO, TALK, CALLED], ids=["hello", "talk", "called"])
@pytest.mark.parametrize("tools", [[], TOOLS], ids=["alone", "tools"])
@pytest.mark.parametrize("family", FAMILIES)
def test_templates_render_as_by_transformers(templates, family, messages, tools, thinking):
    names = NAMES if thinking is None else NAMES | {"enable_thinking": thinking, "builtin_tools": ["x", "y"]}
    copies = json.loads(json.dumps(messages))
    options = {"tools": tools or None, "chat_template": FAMILIES[family], "add_generation_prompt": True}
    try:
        rendered, _ = render_jinja_template(conversations=[copies], **options, **names)
    except TemplateError as e:
        with pytest.raises(RequestError, match=str(e)):
            templates.render(FAMILIES[family], messages, tools, **names)
    else:
        assert templates.render(FAMILIES[family], messages, tools, **names) == rendered[0]
        assert len(rendered[0]) > 5


@pytest.mark.parametrize("source", ["{{ raise_exception('no') }}", FAMILIES["llama-2"]])
def test_what_a_template_refuses(templates, source):
    with pytest.raises(RequestError, match="refuses these messages"):
        templates.render(source, [HELLO[0], HELLO[0]], [], **NAMES)


def test_generation_marks_must_be_closed(templates):
    with pytest.raises(Exception, match="cannot be compiled"):
        templates.render("{% generation %}x", [], [])


def test_calls_without_ids_get_them(make_model, make_client, tmp_path):
    """Ollama's clients send none; Mistral's templates refuse calls without one."""
    make_model(tmp_path / "m", FAMILIES["mistral"], context=4096)
    call = {"function": {"name": "weather", "arguments": CALL}}
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call, call]},
        {"role": "tool", "content": "sun", "tool_name": "weather"},
        {"role": "tool", "content": "rain", "tool_name": "weather"},
    ]
    body = {"model": "m", "messages": messages, "_debug_render_only": True}
    text = make_client(tmp_path).post("/api/chat", json=body).json["_debug_info"]["rendered_template"]
    for number, word in enumerate(("sun", "rain")):
        assert f'"id": "call0000{number}"}}' in text
        assert f'[R] {{"content": {word}, "id": "call0000{number}"}}[/R]' in text


@pytest.mark.parametrize("role", ["end|><|user", "a>", "<|end|>", "user\n", "x" * 65, "a b"])
def test_a_role_brings_no_special_token(make_model, make_client, engine, tmp_path, role):
    """Templates write '<|' + role + '|>': a role that ends one token and begins another would be two of them."""
    make_model(tmp_path / "m", FAMILIES["phi"])
    body = {"model": "m", "messages": [{"role": role, "content": "x"}], "stream": False}
    response = make_client(tmp_path).post("/api/chat", json=body)
    assert response.status_code == 400
    assert "must be a word such as system, user" in response.json["error"]
    assert not engine.requests
