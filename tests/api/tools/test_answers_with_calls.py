"""Calls within an answer of tokens: the dialect's special tokens are seen, others stay hidden, as does reasoning."""

from __future__ import annotations

import json
import random

import pytest
from support.tool_answers import TOOLS, dialect
from tokenizers import AddedToken, Tokenizer, decoders, models

from ollampi.api.detokenizer import WindowDetokenizer, detokenizer
from ollampi.api.engine_client import Done, Tokens
from ollampi.api.generation import Answer, Outcome
from ollampi.api.text_encoder import TextEncoder
from ollampi.api.text_tokenizer import TextTokenizer
from ollampi.api.thinking import ThinkSplitter
from ollampi.api.tools.calls import ToolCall
from ollampi.api.tools.splitter import ToolSplitter
from ollampi.mpiruntime.request import TokenLogprob, Usage

SPECIAL = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|hidden|>")
MISTRAL, HERMES = dialect("{{ tools }}[ARGS]"), dialect("{{ tools }}<tool_call>")
NOW = ToolCall("now", {"a": "ä"})


def speaker(tokenizer: Tokenizer) -> TextTokenizer:
    own = Tokenizer.from_str(tokenizer.to_str())
    own.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    own.add_tokens(["<tool_call>", "</tool_call>"])
    return TextTokenizer(TextEncoder(lambda: own, "tokenizer.json"), "", 4096)


@pytest.fixture
def own(tokenizer):
    return speaker(tokenizer)


def unigram() -> TextTokenizer:
    """Return a tokenizer that is no byte-level one, so that texts are decoded in a window."""
    pieces = [("<unk>", 0.0), *((char, -1.0) for char in '▁abcdefghijklmnopqrstuvwxyz{}[]":,ä')]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return TextTokenizer(TextEncoder(lambda: tokenizer, "tokenizer.json"), "", 4096)


def pieces(tokenizer, text, found=MISTRAL, thinking=None, size=1, stops=(), tools=TOOLS):
    """Return the pieces of an answer that comes some tokens at a time, and its end."""
    answer = Answer(tokenizer, [1], list(stops), thinking, ToolSplitter(found, tools) if found else None)
    ids = tokenizer.encode(text)
    events = [Tokens(ids[place : place + size], []) for place in range(0, len(ids), size)]
    found_pieces = [piece for event in events if (piece := answer.feed(event)) is not None]
    return found_pieces, answer.finish(Done("stop", Usage()))


def joined(found: tuple[list, Outcome]):
    every = [*found[0], found[1].last]
    return "".join(piece.text for piece in every), [call for piece in every for call in piece.calls]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_special_tokens_of_the_dialect_are_seen(own, size):
    text = 'Wait <|hidden|>ü[TOOL_CALLS]now[ARGS]{"a": "ä"}<|hidden|>[TOOL_CALLS]now[CALL_ID]abcabcabc[ARGS]{"a": "ä"}'
    assert joined(pieces(own, text, size=size)) == ("Wait ü", [NOW, NOW])


def test_without_tools_they_are_not(own):
    content, calls = joined(pieces(own, '[TOOL_CALLS]now[ARGS]{"a": "ä"}', found=None))
    assert (content, calls) == ('now{"a": "ä"}', [])


def test_tokens_that_are_not_special_are_text_anyhow(own):
    text = '<tool_call>\n{"name": "now", "arguments": {"a": "ä"}}\n</tool_call><|hidden|>'
    assert joined(pieces(own, text, found=HERMES)) == ("", [NOW])


def test_a_piece_that_only_brings_calls_comes_at_once(own):
    parts, end = pieces(own, '[TOOL_CALLS]now[ARGS]{"a": "ä"}[TOOL_CALLS]now[ARGS]{"a": "ä"}')
    assert [(piece.text, piece.calls) for piece in parts] == [("", (NOW,)), ("", (NOW,))]
    assert end.last.calls == ()


def test_the_end_brings_what_waited(own):
    parts, end = pieces(own, 'x[TOOL_CALLS]now[ARGS]{"a":')
    assert [piece.text for piece in parts] == ["x"]
    assert (end.last.text, end.last.calls) == ('[TOOL_CALLS]now[ARGS]{"a":', ())
    parts, end = pieces(own, 'x <tool_call>{"name": "now", "arguments": {"a": "ä"}}', found=HERMES, size=500)
    assert joined((parts, end)) == ("x ", [NOW])


def test_reasoning_holds_no_calls(own):
    text = '<think>[TOOL_CALLS]now[ARGS]{}</think>\n\n[TOOL_CALLS]now[ARGS]{"a": "ä"}'
    for size in (1, 4, 1000):
        found = pieces(own, text, thinking=ThinkSplitter(inside=False), size=size)
        assert joined(found) == ("", [NOW])
        assert "".join(piece.thinking for piece in [*found[0], found[1].last]) == "[TOOL_CALLS]now[ARGS]{}"


def test_a_stop_string_ends_a_call(own):
    assert joined(pieces(own, 'x[TOOL_CALLS]now[ARGS]{"a": "ä"}', stops=["ä"]))[1] == []


def test_logprobs_come_with_the_call(own):
    ids = own.encode('[TOOL_CALLS]now[ARGS]{"a": "ä"}')
    answer = Answer(own, [1], [], None, ToolSplitter(MISTRAL, TOOLS))
    parts = [piece for token in ids if (piece := answer.feed(Tokens([token], [TokenLogprob(token, -0.5)])))]
    assert [len(piece.logprobs) for piece in parts] == [len(ids)]
    assert answer.finish(Done("stop", Usage())).last.logprobs == []


def test_shown_tokens_between_any_others(own):
    """What is shown stands where its token does, and ends a character that is not whole."""
    ids = [own.special_id(text) for text in SPECIAL]
    single = [i for i in range(own.vocabulary_size) if len(own.token_bytes(i)) == 1]
    draw = random.Random(3)
    for _ in range(300):
        tokens = [draw.choice(draw.choice((ids, single))) for _ in range(draw.randint(0, 30))]
        answer = detokenizer(own, [], SPECIAL[:3])
        text = "".join([*map(answer.feed, tokens), answer.flush()])
        parts: list = [[]]
        for token in tokens:
            if token in ids[:3]:
                parts += [SPECIAL[ids.index(token)], []]
            elif token not in ids:
                parts[-1].append(token)
        assert text == "".join(part if isinstance(part, str) else own.decode(part) for part in parts)


def test_shown_tokens_in_a_window():
    own = unigram()
    answer = detokenizer(own, own.encode("ab"), SPECIAL[:3])
    tokens = [*own.encode("▁cd"), own.special_id("[TOOL_CALLS]"), *own.encode("▁now"), own.special_id("<|hidden|>")]
    assert "".join([*map(answer.feed, tokens), answer.flush()]) == " cd[TOOL_CALLS] now"
    assert isinstance(detokenizer(own, [], ["[NOBODY]"]), WindowDetokenizer)


def test_ids_of_special_tokens_alone(own):
    assert own.special_id("[ARGS]") is not None
    assert [own.special_id(text) for text in ("<tool_call>", "a", "", "[NOBODY]")] == [None] * 4


def test_tools_are_a_capability_of_either_template(make_model, make_client, tmp_path):
    make_model(tmp_path / "plain", "{{ messages }}")
    make_model(tmp_path / "usual", "{{ messages }}{{ tools }}")
    named = make_model(tmp_path / "named", "{{ messages }}")
    config = json.loads((named / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": "{{ messages }}"},
        {"name": "tool_use", "template": "{{ messages }}{% for tool in tools %}{% endfor %}"},
    ]
    (named / "tokenizer_config.json").write_text(json.dumps(config))
    models = make_client(tmp_path).get("/api/tags").json["models"]
    assert {model["name"]: "tools" in model["capabilities"] for model in models} == {
        "plain:latest": False, "usual:latest": True, "named:latest": True,
    }  # fmt: skip
