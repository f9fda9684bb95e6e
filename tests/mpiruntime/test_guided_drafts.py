"""Drafts under a grammar: fewer steps, and the answers of plain decoding."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT
from support.grammars import END, byte_tokenizer, write_speaker
from support.guided import DRAWN, GREEDY, REGEXES, SCHEMAS, SETTINGS, Killer, answers, ask, text
from support.worlds import Recorder, run_engine

from ollampi.mpiruntime import grammar_link, speculation
from ollampi.mpiruntime.drafts import Lookup
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.pace import Pace
from ollampi.mpiruntime.request import Grammar, Sampling
from ollampi.mpiruntime.thread_world import run_threads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaker(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are made whether they pay or not."""
    monkeypatch.setattr(Pace, "price", lambda *_: 0.0)


def undrafted(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "request": {**m["request"], "max_drafts": 0}} for m in messages]


def num_steps(recorder: Recorder, number: int) -> int:
    return sum(e["id"] == number and e["kind"] == "tokens" for e in recorder.log)


def assert_same_answers(recorder: Recorder, expected: Recorder, count: int) -> None:
    for i in range(count):
        assert recorder.tokens(i) == expected.tokens(i), i
        last, other = recorder.last(i), expected.last(i)
        assert (last["kind"], last.get("reason")) == (other["kind"], other.get("reason"))
        assert last["usage"]["generated_tokens"] == other["usage"]["generated_tokens"]


class Guesses:
    """Proposals of all kinds: right ones as far as `truth` knows the answer, then wrong ones."""

    def __init__(self, truth: list[list[int]], seed: int) -> None:
        self.truth, self.rng = truth, random.Random(seed)

    def propose(self, tokens: list[int], most: int) -> list[int]:
        answer = tokens[len(PROMPT) :]
        known = [t for t in self.truth if t[: len(answer)] == answer]
        right = self.rng.choice(known)[len(answer) :][: self.rng.randint(0, 8)] if known else []
        return [*right, *(self.rng.choice([*range(97, 123), END, 5, 267]) for _ in range(self.rng.randint(0, 3)))][
            :most
        ]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("size", "deterministic"), [(1, False), (2, False), (4, False), (1, True), (3, True)])
def test_drafts_change_no_answer(folder: Path, size: int, deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EngineSettings(**{**vars(SETTINGS), "deterministic": deterministic})
    grammars = [Grammar("schema", json.dumps(schema)) for schema in SCHEMAS]
    grammars += [Grammar("regex", r) for r in (*REGEXES, "([a-c]{3}-){9}", "(abcabcabd|abcabcabcx){8}")]
    grammars.append(Grammar("regex", "[a-c]{6}", reasoning=("<think>", "</think>", True)))
    kinds = [GREEDY, DRAWN, Sampling(temperature=0.8, seed=3, repeat_penalty=1.4, logprobs=True)]
    messages = [ask(i, folder, g, kinds[i % 3], max_tokens=70 + i) for i, g in enumerate(grammars * 2)]
    count = len(messages)
    plain = answers(size, undrafted(messages), settings=settings)
    for guess in (True, False):
        if guess:
            guesses = Guesses([plain.tokens(i) for i in range(count)], size)
            monkeypatch.setattr(Lookup, "propose", lambda _, tokens, most, price, by=guesses: by.propose(tokens, most))
        else:
            monkeypatch.undo()
            monkeypatch.setattr(Pace, "price", lambda *_: 0.0)
        drafted = answers(size, messages, settings=settings)
        assert_same_answers(drafted, plain, count)
        assert sum(num_steps(drafted, i) for i in range(count)) < 0.9 * sum(num_steps(plain, i) for i in range(count))


@pytest.mark.usefixtures("always")
def test_what_a_grammar_forces_is_proposed(folder: Path) -> None:
    message = ask(0, folder, Grammar("regex", "(this text is given,|this one too,){5}"), GREEDY)
    plain, drafted = answers(1, undrafted([message])), answers(1, [message])
    assert_same_answers(drafted, plain, 1)
    assert num_steps(drafted, 0) < num_steps(plain, 0) / 3


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("size", [1, 3])
def test_a_draft_model_changes_no_answer(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lookup, "propose", lambda *_: [])
    monkeypatch.setattr(speculation, "_best_length", lambda *_: 5)
    grammars = [Grammar("regex", r) for r in (r"(?s:.){60}", "[a-z ]{50}", "(ab|cd){20}")]
    messages = [
        ask(i, folder, g, sampling) for i, (g, sampling) in enumerate((g, s) for g in grammars for s in (GREEDY, DRAWN))
    ]
    plain = answers(1, undrafted(messages))
    drafted = run_threads(size, lambda c: run_engine(c, messages, SETTINGS, draft=(folder, folder)))[0]
    assert drafted is not None
    assert_same_answers(drafted, plain, len(messages))
    assert num_steps(drafted, 0) < num_steps(plain, 0) / 2


@pytest.mark.usefixtures("always")
def test_drafts_meet_context_shifts_preemption_and_deaths(folder: Path) -> None:
    small = EngineSettings(cache_tokens=64, context_length=32, block_size=4, max_step_tokens=16)
    grammar = Grammar("regex", "(abcd[0-9]){16}")
    messages = [ask(i, folder, grammar, context=32, max_tokens=99) for i in range(4)]
    for client in (Recorder(messages), Killer(messages, 1)):
        recorder = answers(2, messages, client, small)
        for i in range(4):
            assert re.fullmatch(grammar.text, text(recorder, i))


@pytest.mark.usefixtures("always")
def test_a_death_that_is_known_before_the_next_drafts_costs_no_answer(folder: Path) -> None:
    """Drafts are then at hand for grammars that the new process has not opened yet."""
    grammar = Grammar("regex", "(this text is given,|this one too,){5}")
    messages = [ask(1, folder, grammar, GREEDY)]
    client = Killer(messages, 1, waits=True)
    assert re.fullmatch(grammar.text, text(answers(1, messages, client), 1))
    assert not client.times


SMALL = """
from llguidance import LLParserLimits
from ollampi.mpiruntime import grammar_matcher, grammar_worker

grammar_matcher.limits = lambda: LLParserLimits(max_lexer_states=600, verbose_errors=False)
grammar_worker.main()
"""


@pytest.mark.usefixtures("always")
def test_drafts_that_lead_a_grammar_to_its_limits_end_no_answer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is a row of zeros; each draft makes states of the lexer that it would never have needed."""
    script = tmp_path / "worker.py"
    script.write_text(SMALL)
    monkeypatch.setattr(grammar_link, "_COMMAND", [sys.executable, str(script)])
    a, b, zero = (byte_tokenizer().encode(char).ids[0] for char in "ab0")
    sampling = Sampling(temperature=0.0, logit_bias=[(zero, 1000.0)])
    message = ask(0, folder, Grammar("regex", "([0-9]|(a|b)*a(a|b){12}c){60}"), sampling)
    expected = answers(1, undrafted([message]))
    assert text(expected, 0) == "0" * 60
    rng, made = random.Random(1), []

    def propose(self: Lookup, tokens: list[int], most: int, price: float) -> list[int]:
        made.append(1)
        return [a if rng.random() < 0.5 else b for _ in range(16)][:most]

    monkeypatch.setattr(Lookup, "propose", propose)
    assert_same_answers(answers(1, [message]), expected, 1)
    assert 0 < len(made) < 58  # none any more behind the limit
