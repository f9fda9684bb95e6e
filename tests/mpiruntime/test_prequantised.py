"""Checkpoints that are quantised already are refused by tensor, method and remedy, before anything is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import PROMPT, write_checkpoint
from support.worlds import generate, run_engine

from ollampi.mpiruntime.checkpoint import open_checkpoint
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.thread_world import run_threads

Q = "model.layers.1.self_attn.q_proj"
BYTES, WORDS = torch.zeros(64, 32, dtype=torch.uint8), torch.zeros(8, 64, dtype=torch.int32)
CASES: list[tuple[str | None, dict[str, torch.Tensor], str, str]] = [  # method, in place of a weight, tensor, told
    ("awq", {"qweight": WORDS, "qzeros": WORDS, "scales": torch.ones(2, 64).half()}, f"{Q}.qweight", "AWQ"),
    ("gptq", {"qweight": WORDS, "g_idx": WORDS[0], "scales": torch.ones(2, 64).half()}, f"{Q}.g_idx", "GPTQ"),
    (None, {"qweight": WORDS, "scales": torch.ones(2, 64).half()}, f"{Q}.qweight", "AWQ or GPTQ"),
    ("fp8", {"weight": torch.zeros(64, 64).to(torch.float8_e4m3fn)}, f"{Q}.weight", "FP8"),
    (None, {"weight": torch.zeros(64, 64).to(torch.float8_e5m2)}, f"{Q}.weight", "FP8"),
    ("bitsandbytes", {"weight": BYTES, "weight.absmax": torch.ones(64)}, f"{Q}.weight.absmax", "bitsandbytes"),
    (None, {"weight": BYTES.to(torch.int8), "SCB": torch.ones(64)}, f"{Q}.SCB", "bitsandbytes"),
    ("compressed-tensors", {"weight_packed": WORDS}, f"{Q}.weight_packed", "compressed-tensors"),
    ("aqlm", {"codes": BYTES, "codebooks": torch.ones(2, 8).half()}, f"{Q}.codes", "aqlm"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m")


def copy_of(folder: Path, copy: Path, method: object, parts: dict[str, torch.Tensor] | None) -> Path:
    """Write a checkpoint in which `parts` stand for one weight; None leaves it."""
    copy.mkdir()
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if method is not None:
        config["quantization_config"] = {"quant_method": method, "bits": 4}
    (copy / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    if parts is not None:
        del tensors[f"{Q}.weight"]
        tensors |= {f"{Q}.{name}": tensor.clone() for name, tensor in parts.items()}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize(("method", "parts", "tensor", "told"), CASES)
@pytest.mark.parametrize("quantize", ["none", "q4"])
def test_a_request_for_it_names_the_tensor_the_method_and_the_remedy(
    folder: Path, tmp_path: Path, method: str, parts: dict[str, torch.Tensor], tensor: str, told: str, quantize: str
) -> None:
    made = copy_of(folder, tmp_path / "m", method, parts)
    messages = [generate(1, made, PROMPT, max_tokens=1)]
    settings = EngineSettings(cache_tokens=64, block_size=4, quantize=quantize)
    recorder = run_threads(2, lambda c: run_engine(c, messages, settings))[0]
    assert recorder is not None
    assert recorder.last(1)["code"] == "model"
    for text in (str(made), repr(tensor), f"({told})", "quantize=q8 or quantize=q4"):
        assert text in recorder.last(1)["message"]


@pytest.mark.parametrize("method", ["bitsandbytes", 5, "", {}, None])
def test_a_method_told_beside_plain_weights_is_no_hindrance(folder: Path, tmp_path: Path, method: object) -> None:
    assert open_checkpoint(copy_of(folder, tmp_path / "m", method, None)).sources


def test_whole_numbers_that_are_no_weights_are_no_hindrance(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embeddings.position_ids"] = torch.arange(9)
    save_file(tensors, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).sources


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "F6_E2M3", "I4"])
def test_a_dtype_that_is_not_known_is_refused_with_the_remedy(tmp_path: Path, dtype: str) -> None:
    header = json.dumps({"x.weight": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=rf"'x.weight'.*{dtype}.*take .* BF16, F16 or F32"):
        open_checkpoint(tmp_path)
