"""The engine's loop: batches, cancels, loads and unloads, and keeps requests apart, on one rank and on several."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import PROMPT, reference_greedy, write_checkpoint
from support.worlds import Recorder, generate, once_loaded, run_engine

from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.inbox import Event
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.thread_world import run_threads

GREEDY = Sampling(temperature=0.0)
SETTINGS = EngineSettings(cache_tokens=128, block_size=4, max_step_tokens=16)
SIZES = (1, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m")


def answers(size: int, messages: list[dict[str, Any]], settings: EngineSettings = SETTINGS) -> Recorder:
    recorder = run_threads(size, lambda c: run_engine(c, messages, settings))[0]
    assert recorder is not None
    return recorder


@pytest.mark.parametrize("size", SIZES)
def test_requests_in_one_batch_get_what_each_gets_alone(folder: Path, size: int) -> None:
    prompts = [PROMPT[:n] for n in (3, 17, 9, 5, 12, 1)]
    messages = [generate(i, folder, p, sampling=GREEDY, max_tokens=8) for i, p in enumerate(prompts)]
    recorder = answers(size, messages)
    for i, prompt in enumerate(prompts):
        assert recorder.tokens(i) == reference_greedy(folder, prompt, 8)
        usage = recorder.last(i)["usage"]
        assert (usage["prompt_tokens"], usage["generated_tokens"]) == (len(prompt), 8)


def test_a_cache_too_small_for_all_changes_no_text(folder: Path) -> None:
    small = EngineSettings(cache_tokens=32, context_length=32, block_size=4, max_step_tokens=16)
    messages = [generate(i, folder, PROMPT[: 4 + i], sampling=GREEDY, max_tokens=12) for i in range(5)]
    recorder = answers(1, messages, small)
    for i in range(5):
        assert recorder.tokens(i) == reference_greedy(folder, PROMPT[: 4 + i], 12)


@pytest.mark.parametrize("size", SIZES)
def test_a_shared_beginning_changes_no_text(folder: Path, size: int) -> None:
    one_by_one = EngineSettings(cache_tokens=256, block_size=4, max_step_tokens=16, max_running=1)
    prompts = [PROMPT, PROMPT, PROMPT[:9] + PROMPT, PROMPT + PROMPT, PROMPT[:9]]
    messages = [generate(i, folder, p, sampling=GREEDY, max_tokens=8) for i, p in enumerate(prompts)]
    recorder = answers(size, messages, one_by_one)
    for i, prompt in enumerate(prompts):
        assert recorder.tokens(i) == reference_greedy(folder, prompt, 8)


def test_seeded_sampling_repeats_in_any_company_and_on_any_world(folder: Path) -> None:
    sampling = Sampling(temperature=1.0, seed=42)
    alone = answers(1, [generate(0, folder, PROMPT, sampling=sampling, max_tokens=20)]).tokens(0)
    others = [generate(i, folder, PROMPT[:i], max_tokens=15) for i in range(2, 6)]
    for size in SIZES:
        crowd = answers(size, [*others, generate(0, folder, PROMPT, sampling=sampling, max_tokens=20)])
        assert crowd.tokens(0) == alone
    assert answers(1, [generate(0, folder, PROMPT, max_tokens=20)]).tokens(0) != alone


def test_stop_tokens_end_an_answer_and_are_not_part_of_it(folder: Path) -> None:
    plain = reference_greedy(folder, PROMPT, 8)
    stop = plain[4]
    recorder = answers(1, [generate(0, folder, PROMPT, sampling=GREEDY, max_tokens=8, stop_tokens=[stop])])
    assert recorder.tokens(0) == plain[: plain.index(stop)]
    assert recorder.last(0)["reason"] == "stop"


def test_logprobs_come_with_their_tokens(folder: Path) -> None:
    sampling = Sampling(temperature=0.0, logprobs=True, top_logprobs=3)
    recorder = answers(2, [generate(0, folder, PROMPT, sampling=sampling, max_tokens=3)])
    for event in recorder.log[:3]:
        (logprob,) = event["logprobs"]
        assert logprob["token"] == event["tokens"][0] == logprob["top"][0][0]
        assert logprob["logprob"] == logprob["top"][0][1] < 0


def test_a_context_that_is_full_shifts_or_ends(folder: Path) -> None:
    messages = [
        generate(0, folder, PROMPT, sampling=GREEDY, max_tokens=60, context=24),
        generate(1, folder, PROMPT, sampling=GREEDY, context=24, shift=False),
        generate(2, folder, PROMPT, sampling=GREEDY, context=12),
    ]
    recorder = answers(2, messages)
    assert len(recorder.tokens(0)) == 60
    assert len(recorder.tokens(1)) == 24 - len(PROMPT)
    assert recorder.last(1)["reason"] == "length"
    assert recorder.last(2)["code"] == "context"


@pytest.mark.parametrize("size", SIZES)
def test_a_request_that_is_late_ends_where_it_is_and_others_go_on(folder: Path, size: int) -> None:
    one_by_one = EngineSettings(cache_tokens=128, block_size=4, max_step_tokens=16, max_running=1)
    messages = [
        generate(0, folder, PROMPT, sampling=GREEDY, max_tokens=100_000, context=64, timeout_s=0.3),  # it runs
        generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=5, timeout_s=0.01),  # it waits in the queue
        generate(2, folder, PROMPT, sampling=GREEDY, max_tokens=5),
    ]
    recorder = answers(size, messages, one_by_one)
    assert [recorder.last(i).get("code") for i in range(3)] == ["timeout", "timeout", None]
    assert recorder.tokens(1) == []
    assert recorder.tokens(2) == reference_greedy(folder, PROMPT, 5)


def test_the_server_has_a_deadline_too_which_a_request_cannot_extend(folder: Path) -> None:
    settings = EngineSettings(cache_tokens=128, block_size=4, max_step_tokens=16, timeout_s=0.2)
    endless = generate(0, folder, PROMPT, sampling=GREEDY, max_tokens=100_000, context=64, timeout_s=1e6)
    assert answers(1, [endless], settings).last(0)["code"] == "timeout"


def test_a_bias_on_a_token_that_is_not_there_is_refused(folder: Path) -> None:
    recorder = answers(
        1,
        [
            generate(0, folder, PROMPT, sampling=Sampling(temperature=0, logit_bias=[(9999, 1.0)]), max_tokens=4),
            generate(1, folder, PROMPT, sampling=Sampling(temperature=0, logit_bias=[(7, 1000.0)]), max_tokens=4),
        ],
    )
    assert recorder.last(0)["code"] == "request"
    assert recorder.tokens(1) == [7] * 4


def test_answers_to_one_prompt_share_its_computation(folder: Path) -> None:
    messages = [generate(i, folder, PROMPT, sampling=Sampling(temperature=1.0, seed=i), max_tokens=9) for i in range(4)]
    together = answers(1, messages)
    alone = [answers(1, [message]).tokens(i) for i, message in enumerate(messages)]
    assert [together.tokens(i) for i in range(4)] == alone
    assert len({tuple(tokens) for tokens in alone}) == 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("model.layers.1.self_attn.v_proj.weight", "the attention of layer 1"),
        ("model.layers.1.mlp.down_proj.weight", "the MLP of layer 1"),
        ("model.layers.0.input_layernorm.weight", "the attention of layer 0"),
        ("model.embed_tokens.weight", "the embedding"),
        ("lm_head.weight", "the output head"),
    ],
)
def test_an_error_names_the_part_whose_values_are_not_finite(
    folder: Path, tmp_path: Path, size: int, tensor: str, part: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors[tensor].view(-1)[0 if "embed" not in tensor else PROMPT[-1] * tensors[tensor].shape[1]] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    recorder = answers(size, [generate(0, broken, PROMPT, sampling=GREEDY, max_tokens=4)])
    assert recorder.last(0)["code"] == "internal"
    assert recorder.last(0)["message"].startswith(f"{part} computed values that are not finite")


def test_penalties_beyond_fp32_are_not_blamed_on_the_model(folder: Path) -> None:
    wild = Sampling(temperature=0, repeat_penalty=1e-6, frequency_penalty=1000.0, logit_bias=[(7, 3.4e38)])
    recorder = answers(1, [generate(0, folder, [7, 7], sampling=wild, max_tokens=4)])
    assert recorder.last(0)["message"].startswith("the penalties and biases lead beyond the range of fp32")


def test_bad_requests_harm_nobody(folder: Path) -> None:
    messages = [
        generate(0, folder, [], max_tokens=4),
        generate(1, folder, [5, 9999], max_tokens=4),
        generate(2, folder, [5, -1], max_tokens=4),
        generate(3, folder / "missing", PROMPT, max_tokens=4),
        generate(4, folder, PROMPT, sampling=GREEDY, max_tokens=4),
    ]
    recorder = answers(2, messages)
    assert [recorder.last(i)["kind"] for i in range(5)] == ["error"] * 4 + ["done"]
    assert [recorder.last(i)["code"] for i in range(4)] == ["request", "request", "request", "model"]
    assert recorder.tokens(4) == reference_greedy(folder, PROMPT, 4)


def test_a_full_queue_answers_busy_with_ollamas_text(folder: Path) -> None:
    settings = EngineSettings(cache_tokens=128, block_size=4, max_running=1, max_queue=1)
    messages = [generate(i, folder, PROMPT, max_tokens=2) for i in range(5)]
    recorder = answers(1, once_loaded(folder, messages), settings)
    kinds = [recorder.last(i)["kind"] for i in range(5)]
    assert kinds == ["done", "done", "error", "error", "error"]
    assert recorder.last(4)["message"] == "server busy, please try again.  maximum pending requests exceeded"


def test_load_unload_and_listing(folder: Path) -> None:
    model = {"name": "test:latest", "path": str(folder)}
    messages: list[dict[str, Any]] = [
        {"op": "loaded", "id": 1},
        {"op": "load", "id": 2, "model": model, "context": None, "keep_alive_s": None},
        {"op": "loaded", "id": 3, "behind": [2]},
        {"op": "unload", "id": 4, "model": model, "behind": [3]},
        {"op": "loaded", "id": 5, "behind": [4]},
        {"op": "load", "id": 6, "model": model, "context": 64, "keep_alive_s": -1.0, "behind": [5]},
        {"op": "loaded", "id": 7, "behind": [6]},
    ]
    recorder = answers(3, messages)
    assert recorder.last(1)["models"] == recorder.last(5)["models"] == []
    (listed,) = recorder.last(3)["models"]
    assert listed["name"] == "test:latest"
    assert listed["size_bytes"] > 4 * 100_000
    assert listed["expires_at"] is not None
    (kept,) = recorder.last(7)["models"]
    assert (kept["context_length"], kept["expires_at"]) == (256, None)  # the smaller one is a limit of a request only
    assert [recorder.last(i)["reason"] for i in (2, 4, 6)] == ["load", "unload", "load"]


def test_an_unload_waits_for_running_answers(folder: Path) -> None:
    messages: list[dict[str, Any]] = [
        generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=5),
        {"op": "unload", "id": 2, "model": {"name": "test:latest", "path": str(folder)}},
        {"op": "loaded", "id": 3, "behind": [2]},
    ]
    recorder = answers(1, messages)
    assert recorder.tokens(1) == reference_greedy(folder, PROMPT, 5)
    assert len(recorder.last(3)["models"]) == 1  # asked while the answer still ran


def test_the_least_recently_used_idle_model_makes_room(folder: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", seed=1)
    settings = EngineSettings(cache_tokens=64, block_size=4, max_loaded_models=1)
    load = {"op": "load", "context": None, "keep_alive_s": None}
    messages: list[dict[str, Any]] = [
        {**load, "id": 1, "model": {"name": "a:latest", "path": str(folder)}},
        {**load, "id": 2, "model": {"name": "b:latest", "path": str(other)}},
        {"op": "loaded", "id": 3, "behind": [2]},
    ]
    assert [m["name"] for m in answers(2, messages, settings).last(3)["models"]] == ["b:latest"]


class Canceller(Recorder):
    """Cancels request 1 after its third token and leaves a note where asked."""

    def post(self, event: Event) -> None:
        super().post(event)
        if event["kind"] == "tokens" and len(self.tokens(1)) == 3 and event["id"] == 1:
            self.messages.put({"op": "cancel", "id": 1})
            self.messages.put({"op": "cancel", "id": 77})  # never asked: ignored


@pytest.mark.parametrize("size", SIZES)
def test_a_cancel_ends_one_request_and_frees_its_cache(folder: Path, size: int) -> None:
    messages = [generate(1, folder, PROMPT), generate(2, folder, PROMPT, sampling=GREEDY, max_tokens=9)]
    client = Canceller(messages)
    run_threads(size, lambda c: run_engine(c, messages, SETTINGS, client))
    assert 3 <= len(client.tokens(1)) <= 5
    assert client.last(1)["reason"] == "cancel"
    assert client.tokens(2) == reference_greedy(folder, PROMPT, 9)


def test_one_sequence_with_broken_logits_leaves_the_others_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ollampi.mpiruntime import runner as runner_module

    plain = runner_module.Runner.step

    def broken(self: Any, step: Any) -> Any:
        output = plain(self, step)
        if output.logits is not None and len(output.logits) == 2:
            logits = output.logits.clone()
            logits[0] = torch.nan
            return dataclasses.replace(output, logits=logits)
        return output

    monkeypatch.setattr(runner_module.Runner, "step", broken)
    messages = [generate(i, folder, PROMPT, sampling=GREEDY, max_tokens=4) for i in (1, 2)]
    recorder = answers(1, messages, EngineSettings(cache_tokens=128, block_size=4, max_step_tokens=99))
    assert recorder.last(1)["code"] == "internal"
    assert recorder.tokens(2) == reference_greedy(folder, PROMPT, 4)
