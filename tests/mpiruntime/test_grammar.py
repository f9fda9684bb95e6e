"""Answers under a grammar: they fit it, at any world size, and nobody else notices what it costs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, reference_greedy
from support.grammars import CLOSE, fits, write_speaker
from support.guided import DRAWN, GREEDY, REGEXES, SCHEMAS, answers, ask, text
from support.worlds import Recorder, generate, run_engine

from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.request import Grammar, Sampling
from ollampi.mpiruntime.thread_world import run_threads

LARK = 'start: "(" (start | NAME) ")"\nNAME: /[a-z]{2}/\n'
BROKEN = [
    Grammar("regex", "(" * 5000 + "a" + ")" * 5000),
    Grammar("regex", "(a?){10000}a{10000}"),
    Grammar("lark", "start: " + "(" * 20000 + '"a"' + ")" * 20000 + "\n"),
    Grammar("lark", "start: (((\n"),
    Grammar("schema", '{"type":"array","items":' * 3000 + "{}" + "}" * 3000),
    Grammar("schema", '{"enum":["\\ud800"]}'),
    Grammar("schema", '{"type":"number","minimum":1e400}'),
    Grammar("schema", '{"$ref":"file:///etc/passwd"}'),
]
ODD = [  # accepted, and cheap to follow
    Grammar("regex", "a{1,1000000}"),
    Grammar("regex", "(a|b)*a(a|b){400}"),
    Grammar("lark", 'start: start "a" | "a"\n'),
    Grammar("lark", 'start: start start | "a" | start start start\n'),
    Grammar("schema", json.dumps({"enum": [f"value{i}" for i in range(10000)]})),
    Grammar("schema", json.dumps({"type": "array", "items": {"$ref": "#"}})),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaker(tmp_path_factory.mktemp("model") / "m")


def test_answers_fit_their_grammars_and_are_equal_on_all_world_sizes(folder: Path) -> None:
    grammars = [Grammar("schema", json.dumps(schema)) for schema in SCHEMAS] + [Grammar("regex", r) for r in REGEXES]
    grammars.append(Grammar("lark", LARK))
    kinds = [GREEDY, DRAWN]
    asked = [(grammar, sampling) for grammar in grammars for sampling in kinds]
    messages = [ask(i, folder, grammar, sampling) for i, (grammar, sampling) in enumerate(asked)]
    worlds = [answers(size, messages) for size in (1, 2, 3, 4)]
    for i, (grammar, _) in enumerate(asked):
        texts = {text(recorder, i) for recorder in worlds}
        assert len(texts) == 1, texts
        answer = texts.pop()
        if {recorder.last(i)["reason"] for recorder in worlds} == {"length"}:  # nested without end
            assert grammar.kind == "lark", answer
            assert re.fullmatch(r"\(*", answer)
        elif grammar.kind == "schema":
            assert fits(json.loads(answer), json.loads(grammar.text)), answer
        elif grammar.kind == "regex":
            assert re.fullmatch(grammar.text, answer), answer
        else:
            depth = answer.count("(")
            assert re.fullmatch(r"[a-z]{2}", answer[depth : len(answer) - depth])
            assert answer.count(")") == depth


def test_a_limit_cuts_an_answer(folder: Path) -> None:
    recorder = answers(1, [ask(1, folder, Grammar("regex", "[a-z]{50}"), max_tokens=10)])
    assert recorder.last(1)["reason"] == "length"
    assert re.fullmatch("[a-z]{10}", text(recorder, 1))


def test_logprobs_are_those_of_plain_logits(folder: Path) -> None:
    described = Sampling(temperature=0.0, logprobs=True, top_logprobs=2)
    free, bound = generate(1, folder, PROMPT, sampling=described, max_tokens=1), ask(2, folder, None, described)
    bound["request"]["grammar"] = {"kind": "regex", "text": "[a-c]", "reasoning": None}
    recorder = answers(1, [free, bound])
    plain, masked = (
        next(event["logprobs"][0] for event in recorder.log if event["id"] == number and event["kind"] == "tokens")
        for number in (1, 2)
    )
    assert dict(masked["top"]) == pytest.approx(dict(plain["top"]))
    assert masked["logprob"] < plain["logprob"]


def test_grammars_that_cannot_be_used_end_their_own_request(folder: Path) -> None:
    """The first ones are refused, the odd ones answered or ended; free answers beside them are as ever."""
    asked = BROKEN + ODD
    messages = [ask(i, folder, grammar, max_tokens=40) for i, grammar in enumerate(asked)]
    messages += [generate(i, folder, PROMPT, sampling=GREEDY, max_tokens=30) for i in (100, 101)]
    messages.append(ask(102, folder, Grammar("regex", "[0-9]{3}")))
    recorder = answers(2, messages)
    for i, grammar in enumerate(BROKEN):
        assert recorder.last(i)["kind"] == "error", grammar.text[:80]
        assert recorder.last(i)["code"] == "request"
        assert "grammar" in recorder.last(i)["message"]
    for i in range(len(BROKEN), len(asked)):
        assert recorder.last(i)["kind"] == "done" or recorder.last(i)["code"] == "request", recorder.last(i)
    for i in (100, 101):
        assert recorder.tokens(i) == reference_greedy(folder, PROMPT, 30)
    assert re.fullmatch("[0-9]{3}", text(recorder, 102))


def test_a_model_without_a_tokenizer_refuses_grammars_alone(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "m"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).symlink_to(folder / name)
    free = generate(2, other, PROMPT, sampling=GREEDY, max_tokens=3)
    recorder = answers(1, [ask(1, other, Grammar("regex", "a")), free])
    assert "tokenizer.json" in recorder.last(1)["message"]
    assert recorder.tokens(2) == reference_greedy(folder, PROMPT, 3)


def test_context_shifts_and_preemption_leave_the_grammar_right(folder: Path) -> None:
    small = EngineSettings(cache_tokens=64, context_length=32, block_size=4, max_step_tokens=16)
    messages = [ask(i, folder, Grammar("regex", "([a-d][0-9]){40}"), context=32, max_tokens=99) for i in range(4)]
    recorder = run_threads(2, lambda c: run_engine(c, messages, small))[0]
    assert recorder is not None
    for i in range(4):
        assert re.fullmatch("([a-d][0-9]){40}", text(recorder, i))


def test_reasoning_is_free_and_the_answer_is_not(folder: Path) -> None:
    quick = Sampling(temperature=0.0, logit_bias=[(CLOSE, 1000.0)])
    grammar = Grammar("regex", "[a-c]{6}", reasoning=("<think>", "</think>", True))
    assert re.fullmatch("</think>[a-c]{6}", text(answers(1, [ask(1, folder, grammar, quick)]), 1))


class Leaver(Recorder):
    """Cancels request 1 as soon as it is sent, then leaves as a whole where asked."""

    def get(self, timeout_s: float) -> Any:
        taken = super().get(timeout_s)
        if taken is not None and taken[1]["op"] == "generate" and taken[1]["id"] == 1:
            self.messages.put({"op": "cancel", "id": 1})
        return taken


def test_a_cancel_while_the_grammar_is_compiled_ends_the_request(folder: Path) -> None:
    slow = Grammar("schema", '{"type":"integer","multipleOf":1000003}')
    messages = [ask(1, folder, slow), ask(2, folder, Grammar("regex", "[xyz]{4}"))]
    recorder = answers(1, messages, Leaver(messages))
    assert recorder.last(1)["reason"] == "cancel"
    assert re.fullmatch("[xyz]{4}", text(recorder, 2))
