"""Embeddings are what transformers' hidden states make them, on every world, in any company, in any pieces."""

from __future__ import annotations

import dataclasses
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import FAMILIES, PROMPT, reference, reference_greedy, reference_hidden, write_checkpoint
from support.worlds import Recorder, embed, generate, load_reports, once_loaded, run_engine

from ollampi.mpiruntime import runner as runner_module
from ollampi.mpiruntime.block_manager import BlockManager
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.inbox import Event
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import num_parameters
from ollampi.mpiruntime.pool import Pool
from ollampi.mpiruntime.request import EmbedRequest, GenerateRequest, ModelRef, Sampling
from ollampi.mpiruntime.scheduler import Scheduler
from ollampi.mpiruntime.sequence import Sequence
from ollampi.mpiruntime.step import Chunk, Step, decode, encode
from ollampi.mpiruntime.thread_world import run_threads

GREEDY = Sampling(temperature=0.0)
SETTINGS = EngineSettings(context_length=64, cache_tokens=128, block_size=4, max_step_tokens=16)
PROMPTS = [PROMPT, PROMPT[:1], PROMPT[:9] + PROMPT[::-1], PROMPT[:9], PROMPT[3:8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", **FAMILIES["biases"])  # MLP columns cut unevenly


@pytest.fixture(scope="module")
def hidden(folder: Path) -> list[torch.Tensor]:
    return [reference_hidden(folder, prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def greedy(folder: Path) -> list[int]:
    """Return the 12 greedy tokens after PROMPT."""
    return reference_greedy(folder, PROMPT, 12)


def pooled(states: torch.Tensor, mean: bool) -> torch.Tensor:
    return states.mean(0) if mean else states[-1]


def answers(
    size: int, messages: list[dict[str, Any]], settings: EngineSettings = SETTINGS, client: Recorder | None = None
) -> Recorder:
    recorder = run_threads(size, lambda c: run_engine(c, messages, settings, client))[0]
    assert recorder is not None
    return recorder


def assert_embeddings(recorder: Recorder, number: int, hidden: list[torch.Tensor], mean: bool) -> None:
    found = recorder.embeddings(number)
    assert sorted(found) == list(range(len(hidden)))
    for place, states in enumerate(hidden):
        assert (found[place] - pooled(states, mean)).abs().max() <= 1e-4
    assert recorder.last(number)["kind"] == "done"
    assert recorder.last(number)["usage"]["prompt_tokens"] == sum(map(len, hidden))


@pytest.mark.parametrize("size", range(1, 9))
def test_embeddings_beside_answers_equal_the_reference(
    folder: Path, hidden: list[torch.Tensor], greedy: list[int], size: int
) -> None:
    pieces = EngineSettings(cache_tokens=128, block_size=4, max_step_tokens=7)
    messages = [
        generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=12),
        embed(2, folder, PROMPTS, pooling="mean"),
        embed(3, folder, PROMPTS),
        generate(4, folder, PROMPT, sampling=GREEDY, max_tokens=12),
    ]
    recorder = answers(size, messages, pieces)
    assert_embeddings(recorder, 2, hidden, mean=True)
    assert_embeddings(recorder, 3, hidden, mean=False)
    assert recorder.tokens(1) == recorder.tokens(4) == greedy
    order = [e["id"] for e in recorder.log]
    assert order.index(1) < order.index(2) < len(order) - 1 - order[::-1].index(1)  # they did share steps


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_embeds(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **FAMILIES[family])
    expected = [reference_hidden(folder, prompt) for prompt in PROMPTS[:2]]
    recorder = answers(3, [embed(1, folder, PROMPTS[:2], pooling="mean"), embed(2, folder, PROMPTS[:2])])
    assert_embeddings(recorder, 1, expected, mean=True)
    assert_embeddings(recorder, 2, expected, mean=False)


@pytest.mark.parametrize("size", [1, 3])
def test_a_checkpoint_without_a_head_embeds_and_does_not_complete(
    folder: Path, hidden: list[torch.Tensor], tmp_path: Path, size: int
) -> None:
    reference(folder).model.save_pretrained(tmp_path / "base")
    assert read_config(tmp_path / "base").has_head is False
    reports = run_threads(size, lambda c: load_reports(c, tmp_path / "base"))[0]
    assert reports is not None
    assert sum(r.weight_bytes for r in reports) >= 4 * num_parameters(read_config(tmp_path / "base"))
    assert size > 1 or reports[0].unread == []
    messages = [embed(1, tmp_path / "base", PROMPTS), generate(2, tmp_path / "base", PROMPT)]
    recorder = answers(size, messages)
    assert_embeddings(recorder, 1, hidden, mean=False)
    assert (recorder.last(2)["code"], recorder.tokens(2)) == ("request", [])


@pytest.mark.parametrize("mean", [False, True])
def test_a_prompt_that_steps_back_is_pooled_anew(
    folder: Path, hidden: list[torch.Tensor], mean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    plain = Scheduler._preempt

    def counted(self: Scheduler, sequence: Sequence) -> None:
        begun.append(sequence.num_cached if sequence.pool is not None else 0)
        plain(self, sequence)

    monkeypatch.setattr(Scheduler, "_preempt", counted)
    small = EngineSettings(cache_tokens=28, context_length=28, block_size=4, max_step_tokens=3)
    messages = [
        generate(1, folder, PROMPT[:3], sampling=GREEDY, max_tokens=20),
        embed(2, folder, PROMPTS[:1], pooling="mean" if mean else "last"),
    ]
    recorder = answers(1, messages, small)
    assert max(begun) > 0
    assert_embeddings(recorder, 2, hidden[:1], mean)
    assert recorder.tokens(1) == reference_greedy(folder, PROMPT[:3], 20)


@pytest.mark.parametrize("size", [1, 3])
def test_a_beginning_that_is_in_the_cache_changes_no_embedding(
    folder: Path, greedy: list[int], hidden: list[torch.Tensor], size: int
) -> None:
    one_by_one = EngineSettings(cache_tokens=256, block_size=4, max_step_tokens=16, max_running=1)
    messages = [embed(1, folder, PROMPTS), embed(2, folder, PROMPTS, pooling="mean"), embed(3, folder, PROMPTS)]
    messages.append(generate(4, folder, PROMPT, sampling=GREEDY, max_tokens=4))
    recorder = answers(size, messages, one_by_one)
    for number in (1, 2, 3):
        assert_embeddings(recorder, number, hidden, mean=number == 2)
    assert recorder.tokens(4) == greedy[:4]


@pytest.mark.parametrize(("mean", "start", "num_pooled"), [(False, 8, 1), (True, 0, 11)])
def test_only_a_mean_needs_the_tokens_that_the_cache_holds(mean: bool, start: int, num_pooled: int) -> None:
    scheduler = Scheduler(BlockManager(16, 4), max_step_tokens=64, max_running=4, max_waiting=4)
    request = GenerateRequest(ModelRef("m", "/m"), list(range(11)))
    for expected in ((0, num_pooled), (start, num_pooled)):
        sequence = Sequence(request, context=11, seed=0, pool=Pool("mean" if mean else "last"))
        scheduler.add(sequence)
        ((_, chunk),) = scheduler.plan()
        assert (chunk.start, chunk.num_logits, chunk.num_pooled) == (expected[0], 0, expected[1])
        scheduler.advance(sequence, len(chunk.tokens))
        scheduler.remove(sequence)
        scheduler.check()


def test_steps_and_requests_survive_the_wire() -> None:
    step = Step(3, [Chunk([1, 2], 4, [7, 8], 0, 2), Chunk([5], 0, [1], 1), Chunk([6], 9, [2], 0, 1, 3)])
    assert decode(encode(step)) == step
    request = EmbedRequest(ModelRef("m", "/m"), [array("i", [1, 2]), array("i", [3])], "mean", 64, -1.0)
    assert EmbedRequest.from_wire(request.to_wire()) == request


def test_many_inputs_take_one_place_in_the_queue(folder: Path) -> None:
    narrow = EngineSettings(cache_tokens=128, block_size=4, max_step_tokens=8, max_running=2, max_queue=1)
    many = [PROMPT[: 1 + n % 5] for n in range(200)]
    messages = [embed(1, folder, many), embed(2, folder, many), generate(3, folder, PROMPT, max_tokens=3)]
    recorder = answers(1, once_loaded(folder, [*messages, generate(4, folder, PROMPT, max_tokens=3)]), narrow)
    assert recorder.last(4)["code"] == "busy"
    assert len(recorder.tokens(3)) == 3
    hidden = [reference_hidden(folder, prompt) for prompt in many[:5]]
    for number in (1, 2):
        found = recorder.embeddings(number)
        assert sorted(found) == list(range(200))
        for place, embedding in found.items():
            assert (embedding - hidden[place % 5][-1]).abs().max() <= 1e-4


def test_an_answer_does_not_wait_for_all_inputs_that_came_before(folder: Path, greedy: list[int]) -> None:
    many = [PROMPT] * 100
    recorder = answers(1, [embed(1, folder, many), generate(2, folder, PROMPT, sampling=GREEDY, max_tokens=3)])
    assert recorder.tokens(2) == greedy[:3]
    ahead = recorder.log[: recorder.log.index(next(e for e in recorder.log if e["id"] == 2))]
    assert len(ahead) < 10


def test_a_full_queue_refuses_all_inputs_of_a_request(folder: Path, greedy: list[int]) -> None:
    narrow = EngineSettings(cache_tokens=128, block_size=4, max_step_tokens=16, max_running=1, max_queue=0)
    messages = [generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=3), embed(2, folder, PROMPTS)]
    recorder = answers(1, once_loaded(folder, messages), narrow)
    assert recorder.last(2)["code"] == "busy"
    assert recorder.embeddings(2) == {}
    assert recorder.tokens(1) == greedy[:3]


class Canceller(Recorder):
    """Cancels request 1 after its third embedding."""

    def post(self, event: Event) -> None:
        super().post(event)
        if event["id"] == 1 and len(self.embeddings(1)) == 3:
            self.messages.put({"op": "cancel", "id": 1})


@pytest.mark.parametrize("size", [1, 3])
def test_a_cancel_ends_all_inputs(folder: Path, greedy: list[int], size: int) -> None:
    messages = [
        embed(1, folder, [PROMPT] * 50, pooling="mean"),
        generate(2, folder, PROMPT, sampling=GREEDY, max_tokens=9),
    ]
    client = Canceller(messages)
    answers(size, messages, client=client)
    assert len(client.embeddings(1)) < 10
    assert client.last(1)["reason"] == "cancel"
    assert client.tokens(2) == greedy[:9]


def test_embeddings_beside_a_draft_model(folder: Path, hidden: list[torch.Tensor], greedy: list[int]) -> None:
    messages = [generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=12), embed(2, folder, PROMPTS, pooling="mean")]
    messages += [embed(3, folder, PROMPTS), generate(4, folder, PROMPT, sampling=GREEDY, max_tokens=12)]
    recorder = run_threads(2, lambda c: run_engine(c, messages, SETTINGS, draft=(folder, folder)))[0]
    assert recorder is not None
    assert recorder.tokens(1) == recorder.tokens(4) == greedy
    assert_embeddings(recorder, 2, hidden, mean=True)
    assert_embeddings(recorder, 3, hidden, mean=False)


def test_a_deadline_ends_all_inputs(folder: Path, greedy: list[int]) -> None:
    messages = [embed(1, folder, [PROMPT] * 5000, timeout_s=0.2)]
    messages.append(generate(2, folder, PROMPT, sampling=GREEDY, max_tokens=9))
    recorder = answers(1, messages)
    assert recorder.last(1)["code"] == "timeout"
    assert len(recorder.embeddings(1)) < 5000
    assert recorder.tokens(2) == greedy[:9]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_end_their_request_only(
    folder: Path, greedy: list[int], hidden: list[torch.Tensor], value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = runner_module.Runner.step
    broken_steps: list[int] = []

    def broken(self: Any, step: Any) -> Any:
        output = plain(self, step)
        if output.pooled is not None and not broken_steps:
            broken_steps.append(1)
            rows = output.pooled.clone()
            rows[:2, 5] = value
            return dataclasses.replace(output, pooled=rows)
        return output

    monkeypatch.setattr(runner_module.Runner, "step", broken)
    wide = EngineSettings(cache_tokens=256, block_size=4, max_step_tokens=200)
    messages = [embed(1, folder, PROMPTS[:3]), embed(2, folder, PROMPTS)]
    messages.append(generate(3, folder, PROMPT, sampling=GREEDY, max_tokens=3))
    recorder = answers(1, messages, wide)
    assert recorder.last(1)["code"] == "internal"
    assert recorder.last(1)["message"] == "embedding contains NaN or Inf values"
    assert len([e for e in recorder.log if e["id"] == 1]) == 1
    assert_embeddings(recorder, 2, hidden, mean=False)
    assert recorder.tokens(3) == greedy[:3]


def test_a_prompt_may_fill_its_context_and_bad_ones_harm_nobody(folder: Path, hidden: list[torch.Tensor]) -> None:
    messages = [
        embed(1, folder, PROMPTS[:1], context=len(PROMPT), pooling="mean"),
        embed(2, folder, PROMPTS, context=len(PROMPT)),
        embed(3, folder, [PROMPT, [5, 9999]]),
        embed(4, folder, [PROMPT, [-1]]),
        embed(5, folder, [PROMPT, []]),
        embed(6, folder, []),
        embed(7, folder / "missing", PROMPTS),
    ]
    recorder = answers(2, messages)
    assert_embeddings(recorder, 1, hidden[:1], mean=True)
    codes = [recorder.last(number)["code"] for number in range(2, 8)]
    assert codes == ["context", "request", "request", "request", "request", "model"]
    assert "26 tokens" in recorder.last(2)["message"]
    assert not any(recorder.embeddings(number) for number in range(2, 8))
