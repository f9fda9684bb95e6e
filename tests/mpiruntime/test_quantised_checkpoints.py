"""Checkpoints in FP8, AWQ and GPTQ, and with adapters, compute what their exact values do, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.adapters import merged_by_peft, write_adapter
from support.checkpoints import PROMPT, reference_logits, write_checkpoint
from support.packers import CONFIGS, Numbers, gptq, quantised, random_numbers, write_plain, write_quantised
from support.worlds import generate, lead, load_message, loaded, logits_in_pieces, run_engine

from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.thread_world import run_threads

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of PEFT and transformers
SIZES = pytest.mark.parametrize("size", [1, 2, 3, 4])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "m")


def start(folder: Path, size: int, **fields: Any) -> tuple[torch.Tensor, list[LoadReport]]:
    """Return the logits of a prompt and what the ranks hold."""

    def work(runner: Runner) -> tuple[torch.Tensor, list[LoadReport]]:
        reports = runner.lead_load(load_message(folder, **fields))
        return logits_in_pieces(runner, PROMPT, [9, 8]), reports

    found = run_threads(size, lambda c: lead(c, work))[0]
    assert found is not None
    return found


@SIZES
@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_the_values_in_fp32(base: Path, tmp_path: Path, kind: str, size: int) -> None:
    made, plain = quantised(base, tmp_path / "m", kind)
    logits, reports = start(made, size)
    torch.testing.assert_close(logits, reference_logits(plain, PROMPT), rtol=1e-4, atol=1e-4)
    assert all(report.unread == [] for report in reports)


@SIZES
def test_a_deterministic_text_has_the_same_bits_on_any_number_of_ranks(base: Path, tmp_path: Path, size: int) -> None:
    made, _ = quantised(base, tmp_path / "m", "awq")
    adapter = write_adapter(base, tmp_path / "a", target_modules="all-linear")
    one, _ = start(made, 1, deterministic=True, adapters=[str(adapter)])
    many, _ = start(made, size, deterministic=True, adapters=[str(adapter)])
    assert torch.equal(one, many)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_rank_reads_packed_tensors_whole_and_others_in_part(base: Path, tmp_path: Path, kind: str) -> None:
    made, _ = quantised(base, tmp_path / "m", kind)
    size = (made / "model.safetensors").stat().st_size
    (alone,), four = start(made, 1)[1], start(made, 4)[1]
    assert alone.read_bytes <= size
    assert all(report.read_bytes < alone.read_bytes for report in four)


@SIZES
def test_logits_with_adapters_are_those_of_peft(base: Path, tmp_path: Path, size: int) -> None:
    adapters = [
        write_adapter(base, tmp_path / name, seed, target_modules="all-linear") for seed, name in enumerate("ab")
    ]
    for some in (adapters[:1], adapters):
        logits, reports = start(base, size, adapters=[str(path) for path in some])
        with torch.no_grad():
            expected = merged_by_peft(base, *some)(torch.tensor([PROMPT])).logits[0]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert all(report.unread == [] for report in reports)


def test_kept_weights_are_those_of_their_adapter(base: Path, tmp_path: Path) -> None:
    a, b = (write_adapter(base, tmp_path / name, seed, target_modules="all-linear") for seed, name in enumerate("ab"))
    told: dict[str, Any] = {"quantize": "q8", "shard_cache": str(tmp_path / "kept")}
    plain, with_a, with_b = ([], [str(a)], [str(b)])
    expected = [start(base, 2, quantize="q8", adapters=x)[0] for x in (plain, with_a, with_b)]
    for _ in range(2):
        for adapters, logits in zip((plain, with_a, with_b), expected, strict=True):
            assert torch.equal(start(base, 2, adapters=adapters, **told)[0], logits)
    settings = json.loads((a / "adapter_config.json").read_text())
    (a / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 16}))
    changed = start(base, 2, adapters=with_a, **told)[0]
    assert not torch.equal(changed, expected[1])
    assert torch.equal(changed, start(base, 2, quantize="q8", adapters=with_a)[0])


def test_clients_get_the_started_model_with_its_adapters(base: Path, tmp_path: Path) -> None:
    adapter = str(write_adapter(base, tmp_path / "a", target_modules=["q_proj"]))

    def work(runner: Runner) -> list[ModelRef]:
        models = Models(runner, EngineSettings(cache_tokens=64, block_size=4))
        models.pin(ModelRef("test:latest", str(base), (adapter,)))
        asked = ModelRef("test:latest", str(base))
        found = [loaded(models, asked).ref]
        models.unload_when_idle("test:latest")
        found += [loaded(models, asked).ref, loaded(models, ModelRef("other:latest", str(base))).ref]
        return found

    found = run_threads(2, lambda c: lead(c, work))[0]
    assert found is not None
    assert [ref.adapters for ref in found] == [(adapter,), (adapter,), ()]


def test_an_adapter_that_does_not_fit_ends_the_load_on_every_rank(base: Path, tmp_path: Path) -> None:
    def work(runner: Runner) -> None:
        models = Models(runner, EngineSettings(cache_tokens=64, block_size=4))
        with pytest.raises(ModelError, match=r"no adapter_config.json in .*a; an adapter is a folder"):
            models.pin(ModelRef("test:latest", str(base), (str(tmp_path / "a"),)))

    run_threads(3, lambda c: lead(c, work))


def test_a_request_for_what_is_not_read_names_the_tensor_and_the_remedy(base: Path, tmp_path: Path) -> None:
    stem = "model.layers.1.self_attn.q_proj"
    config = {"quant_method": "bitsandbytes"}
    words = {"weight": torch.zeros(64, 32, dtype=torch.uint8), "weight.absmax": torch.ones(64)}
    made = write_quantised(base, tmp_path / "m", config, {stem: words})
    messages = [generate(1, made, PROMPT, max_tokens=1)]
    settings = EngineSettings(cache_tokens=64, block_size=4)
    recorder = run_threads(2, lambda c: run_engine(c, messages, settings))[0]
    assert recorder is not None
    assert recorder.last(1)["code"] == "model"
    for text in (str(made), f"'{stem}.weight", "(bitsandbytes)", "quantize=q8 or quantize=q4"):
        assert text in recorder.last(1)["message"]


def test_scales_of_zero_and_of_either_sign_are_scales_like_others(base: Path, tmp_path: Path) -> None:
    numbers = random_numbers(64, 64, 32)
    scales = numbers.s * ([[1], [-1]])
    scales[0, :5] = 0
    odd = Numbers(numbers.q, numbers.z, scales.astype("float16"), numbers.group_of)
    stem = "model.layers.0.self_attn.q_proj"
    made = write_quantised(base, tmp_path / "m", CONFIGS["gptq"], {stem: gptq(odd)})
    tensors = {**load_file(base / "model.safetensors"), f"{stem}.weight": odd.weight()}
    plain = write_plain(base, tmp_path / "plain", tensors)
    torch.testing.assert_close(start(made, 2)[0], reference_logits(plain, PROMPT), rtol=1e-4, atol=1e-4)
