"""Drafts change how many steps a text takes, never the text."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.checkpoints import ENCODERS, PROMPT, reference_greedy, write_checkpoint
from support.worlds import Recorder, generate, run_engine

from ollampi.mpiruntime import speculation
from ollampi.mpiruntime.drafts import Lookup, Trust
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.pace import Pace
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.thread_world import run_threads

SETTINGS = EngineSettings(cache_tokens=256, block_size=4, max_step_tokens=64)
PLAIN = EngineSettings(cache_tokens=256, block_size=4, max_step_tokens=64, max_drafts=0)
COPY = PROMPT[:7] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", seed=3)  # whose texts repeat themselves


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "other", seed=9)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are made whether they pay or not."""
    monkeypatch.setattr(Pace, "price", lambda *_: 0.0)


def answers(size: int, messages: list[dict[str, Any]], settings: EngineSettings = SETTINGS) -> Recorder:
    recorder = run_threads(size, lambda c: run_engine(c, messages, settings))[0]
    assert recorder is not None
    return recorder


def steps(recorder: Recorder, number: int) -> int:
    """Return how many steps brought tokens."""
    return sum(e["id"] == number and e["kind"] == "tokens" for e in recorder.log)


def oracle(truth: dict[int, list[int]], seed: int) -> Any:
    """Return a `propose` that is often right: it knows the answers by their length of prompt."""
    rng = random.Random(seed)

    def propose(self: Lookup, tokens: list[int], most: int, price: float) -> list[int]:
        for length, answer in truth.items():
            known = len(tokens) - length
            if 0 <= known < len(answer) and tokens[length:] == answer[:known]:
                right = answer[known : known + rng.randint(0, 6)]
                return (right + [rng.randrange(50) for _ in range(rng.randint(0, 4))])[:most]
        return [1, 2, 3][:most]

    return propose


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("size", [1, 2, 5])
def test_text_is_that_of_plain_decoding(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [PROMPT[:n] for n in (3, 9, 17)]
    truth = {len(p): reference_greedy(folder, p, 30) for p in prompts}
    monkeypatch.setattr(Lookup, "propose", oracle(truth, size))
    greedy = Sampling(temperature=0)
    recorder = answers(
        size, [generate(i, folder, p, sampling=greedy, max_tokens=30 - i) for i, p in enumerate(prompts)]
    )
    for i, prompt in enumerate(prompts):
        assert recorder.tokens(i) == truth[len(prompt)][: 30 - i]
        assert recorder.last(i)["usage"]["generated_tokens"] == 30 - i
    assert min(steps(recorder, i) for i in range(3)) < 25


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("size", [1, 3])
def test_seeded_text_is_that_of_plain_decoding(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samplings = [
        Sampling(temperature=1.0, seed=5),
        Sampling(temperature=0.7, seed=9, repeat_penalty=1.3, presence_penalty=0.4, repeat_last_n=4),
        Sampling(temperature=1.5, seed=11, top_k=0, typical_p=0.9, logprobs=True),
    ]
    prompts = [PROMPT[:5], PROMPT[:11], PROMPT[:16]]
    messages = [
        generate(i, folder, p, sampling=s, max_tokens=40)
        for i, (p, s) in enumerate(zip(prompts, samplings, strict=True))
    ]
    plain = answers(1, messages, PLAIN)
    monkeypatch.setattr(Lookup, "propose", oracle({len(p): plain.tokens(i) for i, p in enumerate(prompts)}, size))
    drafted = answers(size, messages)
    for i in range(3):
        assert drafted.tokens(i) == plain.tokens(i)
        assert steps(plain, i) == 40 > steps(drafted, i)
    probabilities = [
        [entry["logprob"] for e in r.log if e["id"] == 2 for entry in e.get("logprobs", [])] for r in (plain, drafted)
    ]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-4)


@pytest.mark.usefixtures("always")
def test_drafts_keep_to_the_context_its_shifts_and_the_stop_token(folder: Path) -> None:
    plain = reference_greedy(folder, COPY, 12)
    messages = [
        generate(0, folder, COPY, sampling=Sampling(temperature=0), max_tokens=90, context=40),
        generate(1, folder, COPY, sampling=Sampling(temperature=0), context=37, shift=False),
        generate(2, folder, COPY, sampling=Sampling(temperature=0), max_tokens=12, stop_tokens=[plain[7]]),
    ]
    drafted, decoded = answers(2, messages), answers(2, messages, PLAIN)
    for i in range(3):
        assert drafted.tokens(i) == decoded.tokens(i)
        assert drafted.last(i)["reason"] == decoded.last(i)["reason"]
    assert len(drafted.tokens(0)) == 90


def test_a_request_may_want_none(folder: Path, always: None) -> None:
    repeated = generate(0, folder, COPY, sampling=Sampling(temperature=0), max_tokens=20, max_drafts=0)
    assert steps(answers(1, [repeated]), 0) == 20


def with_draft(
    size: int, folder: Path, draft: Path, messages: list[dict[str, Any]], settings: EngineSettings
) -> Recorder:
    """Return what a server with a draft model answers."""
    recorder = run_threads(size, lambda c: run_engine(c, messages, settings, draft=(folder, draft)))[0]
    assert recorder is not None
    return recorder


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("draft", ["itself", "another"])
def test_a_draft_model_changes_no_text(
    folder: Path, other: Path, size: int, draft: str, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lookup, "propose", lambda *_: [])
    monkeypatch.setattr(speculation, "_best_length", lambda *_: 5)
    samplings = [Sampling(temperature=0), Sampling(temperature=1.0, seed=4), Sampling(temperature=0.8, seed=5, top_k=0)]
    messages = [
        generate(i, folder, PROMPT[: 5 + 6 * i] * (1 + i), sampling=s, max_tokens=30) for i, s in enumerate(samplings)
    ]
    messages.append(generate(3, folder, PROMPT, sampling=samplings[0], max_tokens=50, context=32))
    plain = answers(1, messages, PLAIN)
    drafted = with_draft(size, folder, folder if draft == "itself" else other, messages, SETTINGS)
    for i in range(4):
        assert drafted.tokens(i) == plain.tokens(i)
        assert drafted.last(i)["reason"] == plain.last(i)["reason"]
    if draft == "itself":
        assert [steps(drafted, i) for i in range(3)] == [1 + 5] * 3  # one token from the prompt, then six at a time


def test_a_draft_model_with_a_cache_too_small_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "_best_length", lambda *_: 5)
    small = EngineSettings(cache_tokens=48, context_length=48, block_size=4, max_step_tokens=16)
    messages = [generate(i, folder, PROMPT[: 4 + i], sampling=Sampling(temperature=0), max_tokens=20) for i in range(5)]
    recorder = with_draft(2, folder, folder, messages, small)
    for i in range(5):
        assert recorder.tokens(i) == reference_greedy(folder, PROMPT[: 4 + i], 20)


def test_a_draft_model_with_other_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    strange = write_checkpoint(tmp_path / "strange", vocab_size=131)
    with pytest.raises(ModelError, match="has 131 tokens and"):
        with_draft(1, folder, strange, [generate(0, folder, PROMPT, max_tokens=3)], SETTINGS)


def test_an_encoder_drafts_for_nobody(folder: Path, tmp_path: Path) -> None:
    encoder = write_checkpoint(tmp_path / "e", **ENCODERS["bert"])
    with pytest.raises(ModelError, match="makes embeddings only; choose one with an output head"):
        with_draft(1, folder, encoder, [generate(0, folder, PROMPT, max_tokens=3)], SETTINGS)


@pytest.mark.parametrize(("chance", "seconds", "length"), [(0.99, 0.001, 16), (0.01, 0.5, 0), (0.5, 1.0, 0)])
def test_as_much_is_drafted_as_pays(chance: float, seconds: float, length: int) -> None:
    model, draft = SimpleNamespace(pace=Pace()), SimpleNamespace(pace=Pace())
    for _ in range(20):
        for tokens in (1, 4, 16, 17):
            model.pace.observe(tokens, 1.0 + 0.001 * tokens)
        draft.pace.observe(1, seconds)
    assert speculation._best_length(model, draft, [chance], 16) == length  # type: ignore[arg-type]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("dtype", "asked", "drafted"), [("float32", None, True), ("bfloat16", None, False), ("bfloat16", 8, True)]
)
def test_drafts_that_could_change_a_text_are_made_for_those_who_ask(
    folder: Path, dtype: str, asked: int | None, drafted: bool
) -> None:
    settings = EngineSettings(dtype=dtype, cache_tokens=256, block_size=4, max_step_tokens=64)
    message = generate(0, folder, COPY, sampling=Sampling(temperature=0), max_tokens=40, max_drafts=asked)
    assert (steps(answers(1, [message], settings), 0) < 40) == drafted


def longest_run(text: list[int], most: int) -> list[int]:
    """Return what followed the last occurrence of the longest run that ends the text, by looking everywhere."""
    for length in (8, 4, 2, 1):
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[len(text) - length :]:
                return text[end : end + most]
    return []


def test_lookup_proposes_what_followed_last() -> None:
    rng = random.Random(0)
    for kinds in (2, 5, 30):
        lookup, text = Lookup(), [rng.randrange(kinds) for _ in range(rng.randrange(1, 40))]
        for _ in range(60):
            most = rng.randrange(1, 9)
            assert lookup.propose(text, most, 0.0) == longest_run(text, most)
            text += [rng.randrange(kinds) for _ in range(rng.randrange(1, 4))]
    assert Lookup().propose([1], 4, 0.0) == []


def test_lookup_trusts_long_runs_and_short_ones_apart() -> None:
    lookup, text = Lookup(), [*range(20), 30, 31, 5]
    assert lookup.propose(text, 4, 0.1) == [6, 7, 8]
    for _ in range(30):
        lookup.trust.learn(3, 0)
    text += [*range(5)]
    assert lookup.propose(text, 4, 0.1) == [5, 6, 7]  # four tokens are equal, which never failed
    assert lookup.propose([*text, 40, 7], 4, 0.1) == []


def test_trust_tells_how_much_of_a_draft_to_expect() -> None:
    trust = Trust()
    trust.learn(4, 3)
    chance = trust.chance
    assert trust.expected(0) == 0
    assert trust.expected(3) == pytest.approx(chance + chance**2 + chance**3)


@pytest.mark.parametrize(("added_s", "drafted"), [(0.0001, True), (0.5, False)])
def test_drafts_that_together_do_not_pay_are_dropped(
    folder: Path, added_s: float, drafted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where any draft at all makes a step much slower, however cheap one more is."""
    monkeypatch.setattr(Pace, "price", lambda self, n, count: added_s / max(1, count) / 0.01 if count < 60 else 0.001)
    declined = []
    monkeypatch.setattr(Pace, "decline", lambda self, n: declined.append(n))
    messages = [
        generate(i, folder, COPY, sampling=Sampling(temperature=0), max_tokens=40, max_drafts=16) for i in range(4)
    ]
    recorder = answers(1, messages)
    assert (steps(recorder, 0) < 40) == drafted
    assert bool(declined) != drafted
    assert [recorder.tokens(i) for i in range(4)] == [answers(1, messages[:1], PLAIN).tokens(0)] * 4


def test_trust_follows_what_happens_and_gives_another_chance() -> None:
    trust = Trust()
    for _ in range(20):
        trust.learn(8, 8)
    assert trust.length(0.5) > 8
    for _ in range(40):
        trust.learn(4, 0)
    assert trust.length(0.3) == 0
    lengths = [trust.length(0.3) for _ in range(200)]
    assert max(lengths) >= 1
    assert Trust().length(1.0) == 0
