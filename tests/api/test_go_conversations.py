"""Conversations through Go's templates: as through the Jinja template of the same family, and as written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from ollampi.api.errors import ApiError
from ollampi.api.go_template import GoTemplate, Thinking, template_capabilities

FOLDER = Path(__file__).resolve().parent.parent / "templates"
SOURCES = {file.stem: file.read_text() for file in sorted(FOLDER.glob("*.gotmpl"))}
COMPACT = "tojson(separators=(',', ':'))"  # as Go writes JSON
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Tell the "weather".\nOf a place.',
            "parameters": {
                "type": "object",
                "required": ["place"],
                "properties": {
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "place": {"type": "string", "description": "Where", "enum": ["Köln", "Bonn"]},
                    "unit": {"type": ["string", "null"], "description": "C"},
                },
            },
        },
    }
]
CALL = {"days": [1, 2], "deep": {"ä": 0.5}, "exact": True, "place": "Köln", "unit": None}
SYSTEM = {"role": "system", "content": "Be kind."}
HELLO = [{"role": "user", "content": "Hello 'you' 🙂"}]
TALK = [*HELLO, {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}, {"role": "user", "content": "And?"}]
CALLED = [
    *HELLO,
    {
        "role": "assistant",
        "content": "",
        "thinking": "hm",
        "reasoning_content": "hm",
        "tool_calls": [{"type": "function", "id": "call00000", "function": {"name": "weather", "arguments": CALL}}],
    },
    {"role": "tool", "name": "weather", "content": "sun", "tool_call_id": "call00000"},
    {"role": "tool", "content": "rain", "tool_call_id": "call00000"},
]
ANSWERED = [*CALLED, {"role": "assistant", "content": "Sun.", "thinking": "so", "reasoning_content": "so"}]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "date": "2024"}


def by_jinja(family, messages, tools=(), **names):
    """Return what transformers makes of a family's Jinja template, with JSON as Go writes it."""
    source = (FOLDER / f"{family}.jinja").read_text().replace("tojson", COMPACT)
    options = {"tools": list(tools) or None, "chat_template": source, "add_generation_prompt": True}
    return render_jinja_template(conversations=[json.loads(json.dumps(messages))], **options, **NAMES, **names)[0][0]


@pytest.mark.parametrize(
    ("family", "messages", "tools"),
    [
        ("qwen-2.5", HELLO, []),
        ("qwen-2.5", TALK, TOOLS),
        ("qwen-2.5", [SYSTEM, *TALK], TOOLS),
        ("qwen-2.5", CALLED, TOOLS),
        ("qwen-2.5", [SYSTEM, *ANSWERED, *HELLO], TOOLS * 2),
        ("qwen-3", HELLO, []),
        ("qwen-3", [SYSTEM, *TALK], []),
        ("qwen-3", CALLED, []),
        ("qwen-3", ANSWERED, []),
        ("llama-3", [SYSTEM, *TALK], []),
        ("llama-3", CALLED, []),
        ("llama-3", [SYSTEM, *ANSWERED, *HELLO], []),
        ("gemma", TALK, []),
        ("gemma", [SYSTEM, *TALK], []),
        ("llama-2", TALK, []),
        ("llama-2", [SYSTEM, *TALK, {"role": "assistant", "content": "Well."}, *HELLO], []),
        ("phi", [SYSTEM, *TALK], []),
        ("phi", [*TALK, {"role": "assistant", "content": "Well."}, *HELLO], []),
    ],
)
def test_both_languages_say_the_same(family, messages, tools):
    assert GoTemplate(SOURCES[family]).conversation(messages, tools) == by_jinja(family, messages, tools)


@pytest.mark.parametrize("think", [True, False])
def test_thinking_can_be_turned_off(think):
    rendered = GoTemplate(SOURCES["qwen-3"]).conversation(TALK, [], Thinking(think, told=True))
    assert rendered == by_jinja("qwen-3", TALK, enable_thinking=think)
    assert rendered.endswith("</think>\n\n") is not think


def test_mistral_with_tools():
    shown = (
        '[{"type":"function","function":{"name":"weather","description":"Tell the \\"weather\\".\\nOf a place.",'
        '"parameters":{"type":"object","required":["place"],"properties":{"days":{"type":"array","items":'
        '{"type":"integer"}},"place":{"type":"string","description":"Where","enum":["Köln","Bonn"]},'
        '"unit":{"type":["string","null"],"description":"C"}}}}}]'
    )
    call = '{"days":[1,2],"deep":{"ä":0.5},"exact":true,"place":"Köln","unit":null}'
    assert GoTemplate(SOURCES["mistral"]).conversation([SYSTEM, *ANSWERED, *HELLO], TOOLS) == (
        "[Q] Hello 'you' 🙂[/Q]"
        f'[CALLS] [{{"name": "weather", "arguments": {call}, "id": "call00000"}}]</s>'
        '[R] {"content": "sun", "name": "weather"}[/R][R] {"content": "rain", "name": ""}[/R]'
        " Sun.</s>"
        f"[AVAILABLE] {shown}[/AVAILABLE][Q] Be kind.\n\nHello 'you' 🙂[/Q]"
    )


def test_command_r_describes_functions():
    assert GoTemplate(SOURCES["command-r"]).conversation([SYSTEM, *HELLO], TOOLS) == (
        "def weather(days: array = None, place: string, unit: [string null] = None, ) -> any:\n"
        '    """Tell the "weather".\nOf a place."""\n'
        "    days (any[]): \n"
        "    place (string Köln Bonn): Where\n"
        "    unit (string | null): C\n"
        "<|turn|>user:Hello 'you' 🙂"
    )


def test_old_templates_go_turn_by_turn():
    source = "{{ if .System }}<{{ .System }}>{{ end }}{{ if .Prompt }}Q {{ .Prompt }} {{ end }}A {{ .Response }};"
    talk = [
        SYSTEM,
        {"role": "user", "content": "1"},
        {"role": "user", "content": "2"},  # one with the one before
        {"role": "assistant", "content": "3"},
        {"role": "tool", "content": "never"},
        {"role": "user", "content": "4"},
        {"role": "system", "content": "S"},
        {"role": "user", "content": "5"},
    ]
    assert GoTemplate(source).conversation(talk, []) == "<Be kind.>Q 1\n\n2 A 3;Q 4 A ;<S>Q 5 A "
    assert GoTemplate(source).conversation([], []) == "A "
    assert GoTemplate(source).conversation([*HELLO, {"role": "assistant", "content": "I am"}], []).endswith(" A I am")
    assert GoTemplate("[{{ .Prompt }}]").conversation(talk[1:2], []) == "[1]"
    assert GoTemplate("[{{ .Prompt }}]").conversation(talk[1:6], []) == "[1\n\n2]3[4]"


def test_nothing_is_written_behind_the_answer():
    source = "{{ .Prompt }}{{ if .System }}{{ .Response }}one{{ else }}two{{ .Response }}three{{ end }}four"
    assert GoTemplate(source).render(Prompt="P", System="S") == "P"
    source = "{{ if .System }}one{{ else }}{{ range .List }}{{ . }}{{ .Response }}x{{ end }}y{{ end }}z"
    assert GoTemplate(source).render(System="S") == "one"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>", "<PRE> a <SUF>b <MID>"),
        (
            "{{- if .Suffix }}<p>{{ .Prompt }}<s>{{ .Suffix }}<m>{{ else }}{{ .Prompt }}{{ end }}{{ .Response }}!",
            "<p>a<s>b<m>!",
        ),
        ("{{ if .Messages }}chat{{ else if .Suffix }}[S]{{ .Suffix }}[P]{{ .Prompt }}{{ end }}", "[S]b[P]a"),
    ],
)
def test_infill(source, expected):
    template = GoTemplate(source)
    assert template.infill("a", "b") == expected
    assert template_capabilities(source) == ["insert"]


def test_what_a_template_mentions_is_what_its_model_can_do():
    known = {name: template_capabilities(source) for name, source in SOURCES.items()}
    assert known == {
        "command-r": ["tools"],
        "gemma": [],
        "llama-2": [],
        "llama-3": [],
        "mistral": ["tools"],
        "phi": [],
        "qwen-2.5": ["tools"],
        "qwen-3": ["thinking"],
    }
    assert GoTemplate("{{ $x := .A.B }}{{ ($x.Cd).E | json }}").names == {"a", "b", "cd", "e", "response"} - {
        "response"
    }


def test_calls_of_merged_messages_are_kept():
    talk = [{"role": "assistant", "content": "a"}, CALLED[1], CALLED[1]]
    source = "{{ range .Messages }}{{ .Content }}|{{ len .ToolCalls }}{{ end }}"
    assert GoTemplate(source).conversation(talk, []) == "a\n\n\n\n|2"


@pytest.mark.parametrize(
    "tools", [[1, None, "x", {}, {"function": 3}], [{"function": {"parameters": {"properties": []}}}]]
)
def test_tools_that_are_none_have_empty_fields(tools):
    source = (
        "{{ range .Tools }}{{ .Function.Name }}{{ len .Function.Parameters.Properties }}{{ end }}{{ len .Messages }}"
    )
    assert GoTemplate(source).conversation([], tools) == "0" * len(tools) + "0"


def test_json_of_a_tool_without_parameters():
    rendered = GoTemplate("{{ .Messages }}{{ .Tools }}").conversation([], [{"function": {"name": "<f>"}}])
    assert rendered == (
        '[][{"type":"","function":{"name":"\\u003cf\\u003e","description":"","parameters":{"type":"","properties":{}}}}]'
    )


def test_an_unknown_field_of_a_message_is_refused():
    with pytest.raises(ApiError, match=r"^template: can't evaluate field Nope; known are Role, Content"):
        GoTemplate("{{ range .Messages }}{{ .Nope }}{{ end }}").conversation(HELLO, [])
