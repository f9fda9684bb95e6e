"""Pack weights as AWQ, GPTQ and FP8 checkpoints do, by their formats' definitions in plain NumPy.

AutoAWQ, WQLinear_GEMM.from_linear; AutoGPTQ, QuantLinear.pack; DeepSeek-V3, README_WEIGHTS.md; compressed-tensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

Array = NDArray[Any]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the output in each place of a word, from the lowest bits


@dataclass(frozen=True)
class Numbers:
    """Numbers q [out, in], zeros z and scales s [groups, out], and the group of each input."""

    q: Array
    z: Array
    s: Array
    group_of: Array

    def weight(self) -> torch.Tensor:
        """Return (q - z) * s as [out, in] in fp32."""
        z, s = self.z[self.group_of].T, self.s.astype(np.float32)[self.group_of].T
        return torch.from_numpy(((self.q - z) * s).astype(np.float32))


CONFIGS: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "fp8": {"quant_method": "fp8", "weight_block_size": [16, 16]},
}


def random_numbers(
    out: int, width: int, group: int, bits: int = 4, seed: int = 0, symmetric: bool = False, shuffled: bool = False
) -> Numbers:
    """Return random numbers; zeros from 1 on, as GPTQ's first format has them."""
    rng = np.random.default_rng(seed)
    num_groups, top = -(-width // group), 1 << bits
    z = np.full((num_groups, out), top // 2) if symmetric else rng.integers(1, top, (num_groups, out))
    scales = rng.uniform(0.001, 0.05, (num_groups, out)).astype(np.float16)
    group_of = np.arange(width) // group
    return Numbers(rng.integers(0, top, (out, width)), z, scales, rng.permutation(group_of) if shuffled else group_of)


def words(numbers: Array, bits: int, order: list[int]) -> torch.Tensor:
    """Return numbers [R, C] packed along C: in place i of each word number order[i], from the lowest bits."""
    per_word = 32 // bits
    packed = np.zeros((numbers.shape[0], numbers.shape[1] // per_word), np.uint32)
    for place, number in enumerate(order):
        packed |= numbers[:, number::per_word].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(packed.view(np.int32))


def awq(n: Numbers) -> dict[str, torch.Tensor]:
    """Return the tensors beside each other in place of `weight`."""
    return {
        "qweight": words(np.ascontiguousarray(n.q.T), 4, AWQ_ORDER),
        "qzeros": words(n.z, 4, AWQ_ORDER),
        "scales": torch.from_numpy(n.s.copy()),
    }


def gptq(n: Numbers, bits: int = 4, first_format: bool = True) -> dict[str, torch.Tensor]:
    """Return the tensors beside each other in place of `weight`."""
    in_order = list(range(32 // bits))
    return {
        "qweight": words(n.q, bits, in_order).T.contiguous(),
        "qzeros": words(n.z - first_format, bits, in_order),
        "scales": torch.from_numpy(n.s.copy()),
        "g_idx": torch.from_numpy(n.group_of.astype(np.int32)),
    }


def write_quantised(
    plain: Path, folder: Path, config: dict[str, Any], parts: dict[str, dict[str, torch.Tensor]]
) -> Path:
    """Write the checkpoint `plain` with `parts` (by stem) in the place of weights and a quantization_config."""
    folder.mkdir()
    values = json.loads((plain / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": config}))
    tensors = load_file(plain / "model.safetensors")
    for stem, replacing in parts.items():
        del tensors[f"{stem}.weight"]
        tensors |= {f"{stem}.{name}": tensor.contiguous() for name, tensor in replacing.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def quantised(base: Path, folder: Path, kind: str) -> tuple[Path, Path]:
    """Write all layers of a model quantised; return its folder, and one of the same values in fp32."""
    tensors = load_file(base / "model.safetensors")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    stems = sorted(n.removesuffix(".weight") for n, t in tensors.items() if t.dim() == 2 and ".layers." in n)
    for seed, stem in enumerate(stems):
        out, width = tensors[f"{stem}.weight"].shape
        if kind == "fp8":
            weight, scales = torch.randn(out, width).to(torch.float8_e4m3fn), torch.rand(-(-out // 16), width // 16)
            parts[stem] = {"weight": weight, "weight_scale_inv": scales, "input_scale": torch.ones(1)}
            spread = scales.repeat_interleave(16, 0)[:out].repeat_interleave(16, 1)
            tensors[f"{stem}.weight"] = weight.float() * spread
        else:
            numbers = random_numbers(out, width, 32, seed=seed)
            parts[stem] = awq(numbers) if kind == "awq" else gptq(numbers)
            tensors[f"{stem}.weight"] = numbers.weight()
    plain = write_plain(base, folder.with_name(f"{folder.name}-plain"), tensors)
    return write_quantised(base, folder, CONFIGS[kind], parts), plain


def write_plain(base: Path, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a checkpoint of other tensors."""
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
