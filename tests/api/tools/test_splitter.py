"""What is content and what is a call is decided as early as it can be, in bounded time."""

from __future__ import annotations

import json
import random
import re

import pytest
from support.tool_answers import TOOLS, dialect, split

from ollampi.api.tools.calls import ToolCall, new_call_id
from ollampi.api.tools.dialects import _BY_TEXT
from ollampi.api.tools.splitter import ToolSplitter

HERMES, LLAMA, MISTRAL = (dialect("{{ tools }}" + text) for text in ("<tool_call>", "<|python_tag|>", "[TOOL_CALLS]"))
CODER, PYTHONIC, GENERIC = (dialect("{{ tools }}" + text) for text in ("<parameter=", "func_name1(", ""))
FENCED, GEMMA, PHI = (dialect("{{ tools }}" + text) for text in ("```tool_code", "<start_function_call>", "<|tool|>"))
NOW = ToolCall("now", {})
CALL = '{"name": "now", "arguments": {}}'


def steps(found, *pieces):
    """Return what each piece gives, and the end."""
    splitter = ToolSplitter(found, TOOLS)
    return [*(splitter.feed(piece) for piece in pieces), splitter.flush()]


def test_content_waits_only_while_a_call_may_begin():
    pieces = ["Let me", " see: a <", "b and <tool", "s, <tool_", "call", ">", "{", '"x"', "!"]
    assert [content for content, _ in steps(HERMES, *pieces)] == [
        "Let me", " see: a ", "<b and ", "<tools, ", "", "", "", '<tool_call>{"x"', "!", "",
    ]  # fmt: skip


def test_a_call_comes_with_its_last_bracket():
    found = steps(HERMES, '<tool_call>{"name": "now", "arguments": {}', "}", "\n</tool", "_call>\n", "\n", "Done")
    assert [calls for _, calls in found] == [[], [NOW], [], [], [], [], []]
    assert [content for content, _ in found] == ["", "", "", "", "", "\n\nDone", ""]


def test_a_json_answer_is_passed_on_at_its_first_foreign_key():
    assert steps(GENERIC, ' {"', "name", '": "', "x", "...")[3:] == [("", []), ("", []), (' {"name": "x...', [])]
    assert steps(GENERIC, '{"temperature"', ": 5}") == [('{"temperature"', []), (": 5}", []), ("", [])]
    assert steps(GENERIC, '{"name": "Ann"', ', "id": 1}')[0] == ('{"name": "Ann"', [])
    assert steps(LLAMA, "{x", " y")[0] == ("{x", [])
    assert steps(PYTHONIC, "[1", ", 2]")[0] == ("[1", [])


def test_only_a_whole_answer_is_a_call_without_a_tag():
    assert split(LLAMA, f"Like {CALL}") == (f"Like {CALL}", [])
    assert split(GENERIC, f"\n {CALL} \n") == ("", [NOW])
    assert split(GENERIC, f"[{CALL}, {CALL}]") == ("", [NOW, NOW])
    assert split(GENERIC, '{"name": "now"}') == ('{"name": "now"}', [])
    assert split(HERMES, '<tool_call>{"name": "now"}</tool_call>') == ("", [NOW])


@pytest.mark.parametrize(
    ("found", "text", "content", "count"),
    [
        (HERMES, f"<tool_call>{CALL}<tool_call>{CALL}</tool_call>", "", 2),
        (HERMES, f"<tool_call>\n{CALL}\n{CALL}\n</tool_call>", "", 2),
        (HERMES, f"<tool_call>[{CALL}]</tool_call>", "", 1),
        (HERMES, f"<tool_call>{CALL} so", " so", 1),
        (HERMES, f"<tool_call><tool_call>{CALL}</tool_call>", "<tool_call>", 1),
        (HERMES, f"a\n<tool_call>{CALL}</tool_call>\nb\n", "a\n\nb\n", 1),
        (HERMES, " \n", " \n", 0),
        (HERMES, f" \n<tool_call>{CALL}</tool_call>\n ", "", 1),
        (HERMES, '<tool_call>{"name": "now", "arguments": 5}</tool_call>', None, 0),
        (HERMES, '<tool_call>{"name": "now", "arguments": "{"}</tool_call>', None, 0),
        (HERMES, '<tool_call>{"name": "now", "arguments": "{}{}"}</tool_call>', None, 0),
        (HERMES, '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", 1),
        (HERMES, '<tool_call>{"type": "function", "function": {"name": "now", "arguments": {}}}</tool_call>', "", 1),
        (HERMES, '<tool_call>{"name": ["now"], "arguments": {}}</tool_call>', None, 0),
        (LLAMA, '<|python_tag|>print("hi")', None, 0),
        (LLAMA, f"{CALL};", ";", 1),
        (LLAMA, f"{CALL}; {CALL};\n{CALL}", "", 3),
        (MISTRAL, f"Wait.[TOOL_CALLS]{CALL}", "Wait.", 1),
        (MISTRAL, "[TOOL_CALLS]now{}", "", 1),
        (MISTRAL, "[TOOL_CALLS]nowhere[ARGS]{}", None, 0),
        (MISTRAL, "[TOOL_CALLS] []", None, 0),
        (CODER, "<function=now>\n</function>\n</tool_call>", "", 1),
        (CODER, "<tool_call><function=now><parameter=</function>", None, 0),
        (PYTHONIC, "[now(), now( )]", "", 2),
        (PYTHONIC, "[now(1)]", None, 0),
        (PYTHONIC, "[now(a=f(1))]", None, 0),
        (PHI, f"x functools[{CALL}, {CALL}]", "x ", 2),
        (PHI, "import functools\nfunctools[0]", None, 0),
        (FENCED, "Look:\n```json\n[1, 2]\n```", None, 0),
        (FENCED, "```tool_code\nnow()\nnow()\n```", "", 2),
        (GEMMA, "<start_function_call>call:now{a:b}<end_function_call>", None, 0),
        (GEMMA, '<start_function_call>call:now{"a": {"b": [1.5, null]}}<end_function_call>', "", 1),
    ],
)  # fmt: skip
def test_what_models_write_at_times(found, text, content, count):
    whole = split(found, text)
    assert (whole[0], len(whole[1])) == (text if content is None else content, count)
    assert all(split(found, text, random.Random(seed)) == whole for seed in range(10))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5", 5), ("5.0", 5.0), ("True", "True"), ("[1, 2]", [1, 2]), ("x", "x"), ("", ""), ('{"a": 1', '{"a": 1'),
    ],
)  # fmt: skip
def test_the_text_of_a_tag_has_the_type_of_its_schema(value, text):
    call = f"<tool_call><function=get_weather><parameter=count>\n{value}\n</parameter></function></tool_call>"
    (found,) = split(CODER, call)[1]
    assert found.arguments == {"count": text}
    assert type(found.arguments["count"]) is type(text)


def test_values_that_json_can_hardly_hold():
    text = (
        '{"name": "now", "arguments": {"a": 1e999, "b": -1e999, "c": "\\ud83d\\ude00 \\ud800", "d": %s, "e": "x\ny"}}'
    )
    (call,) = split(HERMES, f"<tool_call>{text % ('9' * 5000)}</tool_call>")[1]
    assert call.arguments["c"] == "\U0001f600 \ufffd"
    assert call.arguments["e"] == "x\ny"
    json.dumps(call.arguments, allow_nan=False, ensure_ascii=False).encode()
    assert call.arguments["a"] == call.arguments["d"] == -call.arguments["b"] == 1.7976931348623157e308


NESTED = ["[" * 9000, '{"a":' * 9000, '{"name": "now", "arguments": ' + '{"a":' * 9000, "now(a=" + "[" * 9000]
BEGUN = [
    "",
    CALL,
    f"[{CALL}",
    '{"name": "now", "arguments": {"a": "',
    "now(",
    'call:now{a:"',
    "now[ARGS]{",
    "<function=now>",
]


class Counting(ToolSplitter):
    """Counts how many characters are looked at."""

    work = 0

    def _outside(self, text: str, place: int) -> int:
        end = super()._outside(text, place)
        self.work += 1 + end - place
        return end

    def _inside(self, text: str, place: int) -> int:
        end = super()._inside(text, place)
        self.work += 1 + abs(end - place) + len(self._again)
        return end


@pytest.mark.parametrize("found", {found.name: found for _, found in _BY_TEXT}.values(), ids=lambda found: found.name)
def test_hostile_answers_take_linear_time(found):
    for opener in [*found.openers, *found.leading]:
        texts = [opener + text for text in (*NESTED, " " * 9000)] + [(opener + text) * 500 for text in BEGUN]
        for text in texts:
            splitter = Counting(found, TOOLS)
            content, calls = splitter.feed(text)
            more, _ = splitter.flush()
            assert calls or content + more == text
            assert splitter.work < 10 * len(text)


def test_no_opener_begins_another():
    for _, found in _BY_TEXT:
        assert not [(a, b) for a in found.openers for b in found.openers if a != b and b.startswith(a)]


def test_ids_are_as_ollama_writes_them():
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("call_[a-z0-9]{8}", number) for number in ids)
