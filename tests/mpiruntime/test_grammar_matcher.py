"""The masks of grammars: exactly the tokens that fit, whatever the stop tokens, the reasoning and the draft."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from support.grammars import CLOSE, END, OPEN, VOCABULARY, byte_tokenizer

from ollampi.mpiruntime.errors import RequestError
from ollampi.mpiruntime.grammar_matcher import Matcher, Vocabulary, allows, clipped, compile_grammar, read_vocabulary
from ollampi.mpiruntime.reasoning import Reasoning

MERGES = [("a", "b"), ("b", "c"), ("ab", "c"), ("x", "y")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    byte_tokenizer().save(str(file))
    return str(file)


def matcher(vocabulary: Vocabulary, text: str, kind: str = "regex", reasoning: Reasoning | None = None) -> Matcher:
    return Matcher(vocabulary, compile_grammar(vocabulary, kind, text), reasoning)


def allowed(mask: bytes | None) -> set[int]:
    assert mask is not None
    return {token for token in range(8 * len(mask)) if allows(mask, token)}


def ids(text: str) -> list[int]:
    return list(byte_tokenizer().encode(text).ids)


def test_the_mask_holds_the_tokens_that_can_begin_a_match(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(MERGES)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    vocabulary = read_vocabulary(str(tmp_path / "tokenizer.json"), 0, size, (tokenizer.token_to_id("<|end|>"),))
    texts = {token: tokenizer.decode([token]) for token in range(size)}
    begins = {token for token, text in texts.items() if re.fullmatch(r"a|ab|abc|x|xy", text)}
    assert allowed(matcher(vocabulary, "(abc|xy){1,2}").advance([], [])[0]) == begins


def test_stop_tokens_are_allowed_where_the_text_may_end_and_alone_where_it_must(path: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, (END, 259, 99999))
    follow = matcher(vocabulary, "ab?")
    assert allowed(follow.advance([], [])[0]) == set(ids("a"))
    mask = follow.advance(ids("a"), [])[0]
    assert allowed(mask) == {*ids("b"), END, 259}
    assert not follow.complete(mask)
    assert follow.complete(follow.advance(ids("b"), [])[0])


def test_without_stop_tokens_an_answer_ends_only_where_nothing_may_follow(path: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, ())
    follow = matcher(vocabulary, "ab?")
    assert allowed(follow.advance(ids("a"), [])[0]) == set(ids("b"))
    assert follow.complete(follow.advance(ids("b"), [])[0])


def test_special_tokens_and_tokens_without_logits_are_never_text(path: str) -> None:
    few = read_vocabulary(path, 0, 257, (END,))  # the tokenizer has tokens that the model lacks
    many = read_vocabulary(path, 0, VOCABULARY, (END,))
    for vocabulary in (few, many):
        mask = matcher(vocabulary, r"(?s:.*)").advance([], [])[0]
        assert allowed(mask) & set(range(256, 999)) == {END}
        assert len(mask or b"") == -(-vocabulary.size // 8)


def test_bits_behind_the_vocabulary_are_cut() -> None:
    assert clipped(b"\xff\xff\xff\xff", 13) == b"\xff\x1f"
    assert clipped(b"\xff\xff", 16) == b"\xff\xff"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "((("),
        ("regex", r"[^\s\S]"),
        ("regex", r"\ud800"),
        ("lark", "start: ((("),
        ("lark", ""),
        ("schema", '{"type":"banana"}'),
        ("schema", '{"$ref":"#"}'),
        ("schema", '{"type":"integer","minimum":5,"maximum":3}'),
        ("schema", "not json"),
    ],
)
def test_what_no_text_can_fit_is_refused_with_a_reason(path: str, kind: str, text: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, (END,))
    with pytest.raises(RequestError, match=r"the grammar cannot be used: .{5}"):
        matcher(vocabulary, text, kind).advance([], [])


def test_keywords_that_are_not_supported_are_refused_unless_the_schema_says_otherwise(path: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, (END,))
    with pytest.raises(RequestError, match="lenient"):
        compile_grammar(vocabulary, "schema", '{"type":"string","not":{"const":"x"}}')
    lenient = '{"type":"string","not":{"const":"x"},"x-guidance":{"lenient":true}}'
    assert allowed(matcher(vocabulary, lenient, "schema").advance([], [])[0]) == set(ids('"'))


def test_a_token_that_does_not_fit_is_an_error(path: str) -> None:
    follow = matcher(read_vocabulary(path, 0, VOCABULARY, (END,)), "ab")
    with pytest.raises(RequestError):
        follow.advance(ids("b"), [])


def test_an_unusable_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for name in ("tokenizer.json", "none.json"):
        with pytest.raises(RequestError, match=r"tokenizer\.json cannot be used"):
            read_vocabulary(str(tmp_path / name), 0, VOCABULARY, (END,))


def test_a_draft_is_followed_as_far_as_it_fits_and_not_taken(path: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, (END,))
    follow = matcher(vocabulary, "abcd|abxy")
    plain = matcher(vocabulary, "abcd|abxy")
    masks = follow.advance(ids("a"), ids("bxz"))
    one_by_one = [plain.advance(ids(c), [])[0] for c in "abx"]
    assert [allowed(mask) for mask in masks] == [allowed(mask) for mask in one_by_one]
    assert len(follow.advance(ids("b"), ids("q"))) == 1
    assert len(follow.advance(ids("c"), [*ids("d"), END, END])) == 1  # nothing is left to choose at the end
    assert follow.complete(follow.advance(ids("d"), [])[0])


@pytest.mark.parametrize("text", ["(ab|cd){1,9}x?", "a*b", "[a-d]{2,6}"])
def test_drafts_of_any_kind_leave_no_trace(path: str, text: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, (END,))
    drafted, plain = matcher(vocabulary, text), matcher(vocabulary, text)
    rng = random.Random(text)
    mask = plain.advance([], [])[0]
    assert drafted.advance([], ids("abab")) == drafted.advance([], ids("abab"))
    while tokens := sorted(allowed(mask) - {END}):
        token = rng.choice(tokens)
        mask = plain.advance([token], [])[0]
        assert drafted.advance([token], [rng.choice(ids("abcdx")) for _ in range(rng.randint(0, 5))])[0] == mask
        if plain.complete(mask) or rng.random() < 0.1:
            break


def test_a_draft_that_takes_long_is_judged_in_part_and_ends_no_answer(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ollampi.mpiruntime.grammar_matcher.DRAFT_S", 0.0)
    monkeypatch.setattr("ollampi.mpiruntime.grammar_matcher._MOST_DRAFT_S", 0.0)
    follow = matcher(read_vocabulary(path, 0, VOCABULARY, (END,)), "a*")
    assert len(follow.advance(ids("a"), ids("a") * 9)) == 1
    assert len(follow.advance(ids("a"), [])) == 1


def test_what_must_come_next_is_known_as_far_as_there_is_no_choice(path: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, (END,))
    follow = matcher(vocabulary, "ab(cde|cdf)(gh)?")
    follow.advance([], [])
    assert follow.forced() == ids("abcd")
    assert len(follow.advance(ids("a"), ids("bcd"))) == 4
    assert follow.forced() == ids("bcd")
    follow.advance(ids("bcde"), [])
    assert follow.forced() == []
    follow.advance(ids("g"), [])
    assert follow.forced() == ids("h")
    thinking = matcher(vocabulary, "ab", reasoning=Reasoning([OPEN], b"</think>", inside=True))
    thinking.advance([], [])
    assert thinking.forced() == []


def test_an_answer_that_costs_too_much_ends(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollampi.mpiruntime.grammar_matcher.ALLOWANCE_S", 0.0)
    monkeypatch.setattr("ollampi.mpiruntime.grammar_matcher.PER_TOKEN_S", 0.0)
    follow = matcher(read_vocabulary(path, 0, VOCABULARY, (END,)), "a*")
    with pytest.raises(RequestError, match="too long"):
        follow.advance(ids("a") * 100, [])


# ---- reasoning ----


def test_reasoning_that_the_prompt_opened_is_free_until_its_end(path: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, (END,))
    follow = matcher(vocabulary, "ab", reasoning=Reasoning([OPEN], b"</think>", inside=True))
    assert follow.advance([], [*ids("zz"), CLOSE, *ids("a")]) == [None] * 3  # none is judged before the grammar begins
    spelt = [token for char in "z</think>a" for token in ids(char)]
    assert follow.advance([], spelt) == [None] * 9
    assert follow.advance(ids("anything {"), []) == [None]
    assert allowed(follow.advance([CLOSE], [])[0]) == set(ids("a"))


def test_the_end_of_reasoning_is_seen_across_tokens(path: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, (END,))
    follow = matcher(vocabulary, "ab", reasoning=Reasoning([OPEN], b"</think>", inside=True))
    assert follow.advance(ids("hm </thin </think"), []) == [None]
    assert allowed(follow.advance(ids(">"), [])[0]) == set(ids("a"))


def test_an_answer_may_begin_with_reasoning_or_without(path: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, (END,))
    thinks, answers = (
        matcher(vocabulary, "ab", reasoning=Reasoning([OPEN], b"</think>", inside=False)) for _ in range(2)
    )
    assert allowed(thinks.advance([], [])[0]) == {*ids("a"), OPEN}
    assert thinks.advance([OPEN], []) == [None]
    assert allowed(answers.advance(ids("a"), [])[0]) == set(ids("b"))


def test_an_opening_tag_of_several_tokens_is_finished_once_begun(path: str) -> None:
    vocabulary = read_vocabulary(path, 0, VOCABULARY, (END,))
    follow = matcher(vocabulary, "ab", reasoning=Reasoning(ids("[t]"), b"[/t]", inside=False))
    assert allowed(follow.advance([], [])[0]) == set(ids("a["))
    assert allowed(follow.advance(ids("["), [])[0]) == set(ids("t"))
    assert follow.advance(ids("t]"), []) == [None]
    assert allowed(follow.advance(ids("x[/t]"), [])[0]) == set(ids("a"))
