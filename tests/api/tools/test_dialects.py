"""Calls that templates write are read back, and templates tell which syntax their models write."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support.tool_answers import ARGUMENTS, TOOLS, dialect, split

from ollampi.api.chat_template import ChatTemplates
from ollampi.api.tools.calls import ToolCall
from ollampi.api.tools.dialects import dialect_of

FOLDER = Path(__file__).resolve().parents[2] / "templates"
# What a template writes before and behind calls that is no part of an answer, and which dialect it has.
FAMILIES = {
    "command-r7b": ("<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "command-r7b"),
    "deepseek-v3": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>", "deepseek"),
    "deepseek-v3.1": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>", "deepseek"),
    "functiongemma": ("<start_of_turn>model\n", "<end_of_turn>\n", "functiongemma"),
    "gemma-3-tools": ("<start_of_turn>model\n", "<end_of_turn>\n", "fenced"),
    "gemma-4": ("<|turn>model\n", "<turn|>\n", "gemma-4"),
    "granite-3": ("<|start_of_role|>assistant<|end_of_role|>", "<|end_of_text|>\n", "granite"),
    "llama-3-functions": ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", "llama"),
    "llama-3.1": ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", "llama"),
    "llama-4": ("<|header_start|>assistant<|header_end|>\n\n", "<|eot|>", "pythonic"),
    "ministral-3": ("", "</s>", "mistral"),
    "mistral-nemo": ("", "</s>", "mistral"),
    "mistral-small-3.1": ("", "</s>", "mistral"),
    "mistral-small-3.2": ("", "</s>", "mistral"),
    "phi-4-mini": ("<|assistant|>", "<|end|>", "phi"),
    "plain-json": ("<|a|>", "<|e|>", "generic"),
    "qwen-2.5": ("<|im_start|>assistant\n", "<|im_end|>\n", "hermes"),
    "qwen-3-coder": ("<|im_start|>assistant\n", "<|im_end|>\n", "qwen-coder"),
}
ONE_AT_A_TIME = ("llama-3.1",)
BEFORE_CALLS = ("llama-3.1", "llama-4", "plain-json")  # where a call is the whole answer
CALLS = [
    ToolCall("get_weather", ARGUMENTS),
    ToolCall("now", {}),
    ToolCall("get_weather", {"place": "</tool_call>[TOOL_CALLS]<|python_tag|>```"}),
]


@pytest.fixture(scope="module")
def templates():
    return ChatTemplates()


def source(family: str) -> str:
    return (FOLDER / "tools" / f"{family}.jinja").read_text()


def answer(templates: ChatTemplates, family: str, calls: list[ToolCall]) -> str:
    """Return what a model of this family would have to write for these calls, as its template writes them."""
    head, end, _ = FAMILIES[family]
    asked = [{"role": "user", "content": "?"}]
    written = [
        {"type": "function", "id": f"call{number:05d}", "function": {"name": call.name, "arguments": call.arguments}}
        for number, call in enumerate(calls)
    ]
    turn = {"role": "assistant", "content": "", "tool_calls": written}
    tools = [tool.values for tool in TOOLS]
    before = templates.render(source(family), asked, tools)
    text = templates.render(source(family), [*asked, turn], tools).removeprefix(before)
    assert text.startswith(head)
    assert text.endswith(end)
    return text[len(head) : len(text) - len(end)]


def test_every_template_is_tried():
    assert set(FAMILIES) == {file.stem for file in (FOLDER / "tools").glob("*.jinja")}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_tells_its_dialect(family):
    assert dialect(source(family)).name == FAMILIES[family][2]


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_that_a_template_writes_are_read_back(templates, family):
    for calls in [[call] for call in CALLS] + ([] if family in ONE_AT_A_TIME else [CALLS, CALLS[:2], CALLS[1:]]):
        text = answer(templates, family, calls)
        assert split(dialect(source(family)), text) == ("", calls), text


@pytest.mark.parametrize("family", FAMILIES)
def test_where_the_text_is_cut_changes_nothing(templates, family):
    text = answer(templates, family, CALLS[:1] if family in ONE_AT_A_TIME else CALLS)
    if family not in BEFORE_CALLS:
        text = f" It < is [ so {{\n\n{text}"
    whole = split(dialect(source(family)), text)
    assert whole[1], text
    for seed in range(30):
        assert split(dialect(source(family)), text, random.Random(seed)) == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_no_call_is_lost_nowhere(templates, family):
    """Calls that end early, or are damaged, come out as they were written, as far as they were no calls."""
    text = answer(templates, family, CALLS[:1] if family in ONE_AT_A_TIME else CALLS)
    randoms = random.Random(family)
    for _ in range(150):
        place = randoms.randrange(len(text))
        damaged = text[:place] + randoms.choice(("", "\x00", "{", '"', "<", "]")) + text[place + randoms.randrange(3) :]
        cut = damaged[: randoms.randrange(len(damaged) + 1)]
        whole = split(dialect(source(family)), cut)
        assert split(dialect(source(family)), cut, randoms) == whole
        if not whole[1]:
            assert whole[0] == cut
    unknown = answer(templates, family, [ToolCall("nobody", {"a": 1})])
    assert split(dialect(source(family)), unknown) == (unknown, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_may_be_json_in_a_string(templates, family):
    text = answer(templates, family, CALLS[:1])
    written = json.dumps(ARGUMENTS, ensure_ascii=False)
    if f": {written}" in text:
        text = text.replace(f": {written}", f": {json.dumps(written)}")
        assert split(dialect(source(family)), text) == ("", CALLS[:1])


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ messages }}", None),
        ("You have no tools. <tool_call>{# tools #}", None),
        ("{% if my_tools or tools_ %}<tool_call>{% endif %}", None),
        ("{{ .Prompt }} .Tools <tool_call>", None),
        ("{{", None),
        ("{% tools", None),
        ("{{" * 500_000, None),
        ("{{- range $.Tools }}{{ .Function }}{{ end }}<tool_call>", "hermes"),
        ("{{ if .Tools }}{{ .Tools }}{{ end }}[TOOL_CALLS] [", "mistral"),
        ("{{ if and $.Tools .Last }}{{ end }}<|start_header_id|>", "llama"),
        ("{%- set tools = custom_tools %}<|python_tag|>", "llama"),
        ("{% if message['tools'] %}<|tool|>{{ message['tools'] }}{% endif %}", "phi"),
        ("{{ tools }}", "generic"),
    ],
)  # fmt: skip
def test_templates_that_know_no_tools_have_no_dialect(template, name):
    found = dialect_of(template)
    assert (found and found.name) == name


def test_the_templates_of_other_tests():
    names = {file.stem: dialect_of(file.read_text()) for file in FOLDER.glob("*.jinja")}
    assert {name for name, found in names.items() if found is None} == {"gemma", "llama-2", "qwen-3", "trained"}
