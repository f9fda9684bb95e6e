"""A small random model calls what it must, on any number of ranks, through the real engine."""

from __future__ import annotations

import pytest
from support.grammars import byte_tokenizer, fits, write_speaker
from support.guided import DRAWN, answers, ask, text
from support.tool_answers import definition, dialect, split

from ollampi.api.tools.definitions import tools_of
from ollampi.api.tools.forcing import tool_grammar

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "tag": {"type": "string", "maxLength": 3}},
    "required": ["x", "tag"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_pattern": " "},
}
PLAIN = {key: value for key, value in POINT.items() if key != "x-guidance"}
HERMES, CODER = dialect("{{ tools }}<tool_call>"), dialect("{{ tools }}<parameter=")


def special_id(text: str) -> int | None:
    """Return the id of a special token of the model's tokenizer."""
    return byte_tokenizer().token_to_id(text) if text.startswith("<|") else None


@pytest.mark.parametrize("size", [1, 2])
def test_a_model_calls_what_it_must(tmp_path, size):
    folder = write_speaker(tmp_path)
    cases = [(HERMES, POINT), (CODER, PLAIN)]
    grammars = [tool_grammar(found, tools_of([definition("p", schema)]), "required", False, special_id)
                for found, schema in cases]  # fmt: skip
    recorder = answers(size, [ask(number, folder, grammar, DRAWN) for number, grammar in enumerate(grammars, 1)])
    for number, (found, schema) in enumerate(cases, 1):
        content, calls = split(
            found, text(recorder, number).removesuffix("<|end|>"), tools=tools_of([definition("p", schema)])
        )
        assert (content, len(calls), calls[0].name) == ("", 1, "p")
        assert fits(calls[0].arguments, schema)


def test_a_schema_that_cannot_be_followed_ends_its_own_request(tmp_path):
    folder = write_speaker(tmp_path)
    tools = tools_of([definition("p", {"type": "object", "properties": {"a": {"not": {}}}, "required": ["a"]})])
    recorder = answers(1, [ask(1, folder, tool_grammar(HERMES, tools, "p", False, special_id)), ask(2, folder, None)])
    assert (recorder.last(1)["kind"], recorder.last(1)["code"]) == ("error", "request")
    assert "the grammar cannot be used" in recorder.last(1)["message"]
    assert recorder.last(2)["kind"] == "done"
