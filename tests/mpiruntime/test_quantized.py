"""Quantised models compute what their rounded weights say, on every world alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import PROMPT, reference_logits, write_checkpoint
from support.worlds import generate, lead, load_message, logits_in_pieces, run_engine

from ollampi.kernels.quantised import dequantise, quantise
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.memory import BITS
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.thread_world import run_threads

FORMATS = pytest.mark.parametrize("quantize", ["q8", "q4"])
SIZES = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", head_dim=32, attention_bias=True)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "t", head_dim=32, tie_word_embeddings=True)


def logits(folder: Path, size: int, quantize: str) -> torch.Tensor:
    load = load_message(folder, quantize=quantize)

    def compute(runner) -> torch.Tensor:
        runner.lead_load(load)
        return logits_in_pieces(runner, PROMPT, [9, 1, 5, 1, 1])

    found = run_threads(size, lambda c: lead(c, compute))[0]
    assert found is not None
    return found


def rounded_copy(folder: Path, copy: Path, bits: int) -> Path:
    """Write a checkpoint whose matrices are what they are after quantising."""
    copy.mkdir()
    (copy / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    kept = {name: dequantise(quantise(t, bits)) if t.dim() == 2 else t for name, t in tensors.items()}
    save_file({name: t.contiguous() for name, t in kept.items()}, copy / "model.safetensors", {"format": "pt"})
    return copy


@FORMATS
@pytest.mark.parametrize("name", ["folder", "tied"])
def test_logits_are_those_of_the_rounded_weights(
    name: str, quantize: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    expected = reference_logits(rounded_copy(model, tmp_path / "copy", BITS[quantize]), PROMPT)
    found = logits(model, 1, quantize)
    assert (found - expected).square().mean().sqrt() <= 0.02 * expected.std()  # what 8-bit activations cost


@FORMATS
def test_the_world_changes_nothing_but_the_order_of_sums(folder: Path, quantize: str) -> None:
    alone = logits(folder, 1, quantize)
    for size in SIZES[1:]:
        moved = (logits(folder, size, quantize) - alone).abs()
        assert moved.median() <= 1e-5 * alone.std()  # a number at a rounding border may move its few successors
        assert moved.max() <= 0.05 * alone.std()


@FORMATS
def test_greedy_text_is_the_same_on_every_world(folder: Path, quantize: str) -> None:
    settings = EngineSettings(cache_tokens=64, block_size=4, max_step_tokens=7, quantize=quantize)
    messages = [generate(1, folder, PROMPT, sampling=Sampling(temperature=0), max_tokens=12)]
    texts = []
    for size in SIZES:
        recorder = run_threads(size, lambda c: run_engine(c, messages, settings))[0]
        assert recorder is not None
        texts.append(recorder.tokens(1))
    assert len(texts[0]) == 12
    assert texts == [texts[0]] * len(SIZES)


@FORMATS
def test_every_weight_is_counted(folder: Path, quantize: str) -> None:
    config = read_config(folder)
    for size in SIZES:
        load = load_message(folder, quantize=quantize)
        reports = run_threads(size, lambda c, load=load: lead(c, lambda runner: runner.lead_load(load)))[0]
        assert reports is not None
        for report in reports:
            assert report.weight_bytes == shard_size(config, Shard(report.rank, size), "float32", quantize).total_bytes


@FORMATS
def test_cuts_within_a_group_are_refused(tmp_path: Path, quantize: str) -> None:
    narrow = write_checkpoint(tmp_path / "m")  # heads of 8 numbers
    settings = EngineSettings(cache_tokens=64, block_size=4, quantize=quantize)
    messages = [generate(1, narrow, PROMPT, max_tokens=2)]
    recorder = run_threads(3, lambda c: run_engine(c, messages, settings))[0]
    assert recorder is not None
    assert recorder.last(1)["code"] == "model"
    assert "groups of 32" in recorder.last(1)["message"]
    assert run_threads(1, lambda c: run_engine(c, messages, settings))[0].last(1)["reason"] == "length"


def test_deterministic_arithmetic_refuses_them(folder: Path) -> None:
    load = load_message(folder, quantize="q8", deterministic=True)
    with pytest.raises(ModelError, match="deterministic=true cannot compute with quantize=q8"):
        run_threads(1, lambda c: lead(c, lambda runner: runner.lead_load(load)))


def test_a_width_that_32_does_not_divide_is_filled_up(tmp_path: Path) -> None:
    odd = write_checkpoint(tmp_path / "m", hidden_size=40, head_dim=32, intermediate_size=100)
    assert json.loads((odd / "config.json").read_text())["intermediate_size"] == 100
    expected = reference_logits(rounded_copy(odd, tmp_path / "copy", 8), PROMPT)
    assert (logits(odd, 1, "q8") - expected).square().mean().sqrt() <= 0.02 * expected.std()


@FORMATS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["self_attn.o_proj.weight", "mlp.up_proj.weight", "self_attn.k_proj.bias"])
def test_what_is_not_finite_is_refused_by_name(
    folder: Path, tmp_path: Path, quantize: str, bad: float, name: str
) -> None:
    tensors = load_file(folder / "model.safetensors")
    full = f"model.layers.1.{name}"
    tensors[full].view(-1)[-3] = bad  # on the last rank alone
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    load = load_message(tmp_path, quantize=quantize)
    with pytest.raises(ModelError, match=f"tensor '{full}' holds NaN or infinity, .* quantize=none"):
        run_threads(2, lambda c: lead(c, lambda runner: runner.lead_load(load)))
    plain = load_message(tmp_path)
    assert run_threads(2, lambda c: lead(c, lambda runner: runner.lead_load(plain)))[0]
