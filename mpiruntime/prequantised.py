"""Refuse checkpoints that are quantised already, by the tensor, the method and what can be done."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.safetensors_header import TensorEntry

_FLOATS = {"F64", "F32", "F16", "BF16"}
_SIGNS = [  # what names of tensors end with, and what writes them
    (r"\.(qweight|qzeros|scales|g_idx)", "AWQ or GPTQ"),
    (r"\.weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+)|\.SCB", "bitsandbytes"),
    (r"\.(weight_packed|weight_shape|weight_zero_point)", "compressed-tensors"),
    (r"\.(weight_scale|weight_scale_inv|input_scale|weight_scale_2)", "FP8 or another format with scales"),
    (r"_(blocks|scales)", "MXFP4"),
]
_TOLD = {"awq": "AWQ", "gptq": "GPTQ", "fp8": "FP8"}


def refuse_quantised(folder: Path, entries: Iterable[TensorEntry]) -> None:
    """Raise CheckpointError where a tensor is one of a quantised checkpoint.

    What config.json tells of a method counts where there is such a tensor: some keep it beside plain weights.
    """
    method = _method(folder)
    for entry in entries:
        sign = _sign(entry) or (method if entry.dtype not in _FLOATS else None)
        if sign is not None:
            raise CheckpointError(
                f"{entry.path}: tensor {entry.name!r} of dtype {entry.dtype} shows that this is quantised already"
                f" ({_TOLD.get(method or '', method) or sign}), which is not read; take the checkpoint that it was made"
                " from, in BF16, F16 or F32, and set quantize=q8 or quantize=q4"
            )


def _sign(entry: TensorEntry) -> str | None:
    """Return the method that a tensor alone tells of, or None."""
    for ending, method in _SIGNS:
        if re.search(f"(?:{ending})$", entry.name):
            return method
    if entry.dtype.startswith("F8"):
        return "FP8"
    whole = entry.dtype not in _FLOATS and entry.name.endswith(".weight")
    return "whole numbers without a scale" if whole else None


def _method(folder: Path) -> str | None:
    """Return quantization_config.quant_method of config.json, or None where it tells of none."""
    try:
        method = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return method[:40] if isinstance(method, str) and method else None
