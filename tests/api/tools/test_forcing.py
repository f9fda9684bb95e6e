"""Whatever tokens llguidance allows under a grammar, the answer is a call whose arguments are valid."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.grammars import byte_tokenizer, fits
from support.tool_answers import definition, dialect, split
from tokenizers import AddedToken

from ollampi.api.errors import ApiError
from ollampi.api.tools.definitions import tools_of
from ollampi.api.tools.dialects import _BY_TEXT
from ollampi.api.tools.forcing import tool_grammar
from ollampi.mpiruntime.errors import RequestError
from ollampi.mpiruntime.grammar_matcher import Vocabulary, compile_grammar, read_vocabulary

MERGES = [("<", "p"), ('"', ":"), (",", "Ġ"), ('"', "}"), ("}", "]"), (">", "Ċ"), ("Ċ", "<"), ("{", '"'), (":", "Ġ")]
CLOSING = ('"', "}", "]", ")", "<", ">", "</p", "Ċ<", "\n")
SCALARS = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 255},
        "b": {"type": "string", "maxLength": 4, "description": "A \"text\"."},
        "c": {"type": "string", "enum": ["x", "ä\n</b>"]},
        "d": {"type": "boolean"},
        "e": {"type": "null"},
    },
    "required": ["c", "a"],
    "additionalProperties": False,
}  # fmt: skip
DEEP = {
    "type": "object",
    "properties": {
        "list": {"type": "array", "items": {"enum": ["x", 7, None]}, "maxItems": 2},
        "either": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
        "inner": SCALARS,
    },
    "required": ["either", "list"],
    "additionalProperties": False,
}
ODD_NAMES = {"type": "object", "properties": {"a b": {"type": "boolean"}, "<": {"type": "boolean"}},
             "required": ["a b"], "additionalProperties": False}  # fmt: skip
REFERRING = {"type": "object", "properties": {"q": {"$ref": "#/$defs/Q"}}, "required": ["q"],
             "additionalProperties": False, "$defs": {"Q": {"enum": ["u", 7]}}}  # fmt: skip
SCHEMAS = {"scalars": SCALARS, "deep.er": DEEP, "odd-names": ODD_NAMES, "größe/x:1@y": None,
           "referring": {**REFERRING, "properties": {"q": {"enum": ["u", 7]}}}}  # fmt: skip
TOOLS = tools_of([definition(name, REFERRING if name == "referring" else schema) for name, schema in SCHEMAS.items()])


def vocabulary(folder: Path, special: tuple[str, ...]) -> tuple[Vocabulary, object]:
    tokenizer = byte_tokenizer(MERGES)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    folder.mkdir(exist_ok=True)
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    size = tokenizer.get_vocab_size()
    return read_vocabulary(str(file), 0, size, (tokenizer.token_to_id("<|end|>"),)), tokenizer


def written(known: Vocabulary, tokenizer, grammar, seed: int) -> str | None:
    """Return a random answer under a grammar, None where it became too long."""
    matcher = compile_grammar(known, grammar.kind, grammar.text)
    draw, end, tokens = random.Random(seed), next(iter(known.stops)), []
    closing = {tokenizer.token_to_id(text) for text in CLOSING}
    for _ in range(1500):
        mask = matcher.compute_bitmask()
        allowed = [token for token in range(known.size) if mask[token // 8] >> token % 8 & 1]
        near = [token for token in allowed if token in closing]
        token = (
            end
            if end in allowed and draw.random() < 0.6
            else draw.choice(near if near and draw.random() < 0.4 else allowed)
        )
        if token == end:
            return str(tokenizer.decode(tokens, skip_special_tokens=False))
        assert matcher.consume_token(token)
        tokens.append(token)
    return None


def check(call) -> None:
    schema = SCHEMAS[call.name]
    assert schema is None or fits(call.arguments, schema), call


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize(("text", "found"), _BY_TEXT, ids=lambda value: value if isinstance(value, str) else "")
def test_random_tokens_make_valid_calls(tmp_path, text, found, special):
    known, tokenizer = vocabulary(tmp_path, found.special if special else ())
    ids = (lambda text: tokenizer.token_to_id(text)) if special else (lambda _: None)
    ended = 0
    for parallel in (True, False):
        for tool in [*TOOLS, None]:
            grammar = tool_grammar(found, TOOLS, tool.name if tool else "required", parallel, ids)
            assert grammar.reasoning is None
            for seed in range(2):
                answer = written(known, tokenizer, grammar, seed)
                if answer is None:
                    continue
                content, calls = split(found, answer, tools=TOOLS)
                assert (content, bool(calls)) == ("", True), answer
                assert parallel or len(calls) == 1
                assert tool is None or {call.name for call in calls} == {tool.name}
                for call in calls:
                    check(call)
                ended += 1
    assert ended > 15


@pytest.mark.parametrize(
    ("text", "name", "own"),
    [
        ("<parameter=", "scalars", "<parameter=c>"),
        ("<start_function_call>", "scalars", "c:<escape>"),
        ("<|tool_call>", "scalars", 'c:<|"|>'),
        ("func_name1(", "scalars", "c="),
        ("func_name1(", "deep.er", "list="),
        ("<parameter=", "odd-names", '{"name": "odd-names", "arguments": {'),
    ],
)
def test_arguments_stand_in_the_familys_own_syntax_where_it_can_hold_them(tmp_path, text, name, own):
    found = dialect("{{ tools }}" + text)
    known, tokenizer = vocabulary(tmp_path, ())
    grammar = tool_grammar(found, TOOLS, name, False, lambda _: None)
    assert own in (written(known, tokenizer, grammar, 3) or "")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"not": {}}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/Nobody"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "string", "format": "moon"}}, "required": ["a"]},
    ],
)
@pytest.mark.parametrize("text", ["<tool_call>", "<parameter=", "func_name1(", "<start_function_call>"])
def test_what_llguidance_refuses_is_refused_as_a_format_is(tmp_path, text, schema):
    known, _ = vocabulary(tmp_path, ())
    tools = tools_of([definition("f", schema)])
    grammar = tool_grammar(dialect("{{ tools }}" + text), tools, "required", False, lambda _: None)
    with pytest.raises(RequestError, match="the grammar cannot be used"):
        compile_grammar(known, grammar.kind, grammar.text)


def test_refusals_name_what_is_wrong():
    found = dialect("{{ tools }}<tool_call>")
    with pytest.raises(ApiError, match=r"tool_choice names 'x', but the tools are: scalars, deep\.er") as caught:
        tool_grammar(found, TOOLS, "x", False, lambda _: None)
    assert caught.value.status == 400
    large = [definition(f"f{n}", {"type": "object", "description": "x" * 100_000 + str(n)}) for n in range(3)]
    with pytest.raises(ApiError, match="name one of them in tool_choice") as caught:
        tool_grammar(found, tools_of(large), "required", False, lambda _: None)
    assert caught.value.status == 400
    tool_grammar(found, tools_of(large), "f1", False, lambda _: None)
