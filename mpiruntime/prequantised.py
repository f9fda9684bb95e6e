"""Make one source of the tensors that keep a quantised matrix; refuse what is kept in no way that is known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.float8 import BLOCK, Float8
from ollampi.mpiruntime.packed import Packed, Packing, group_index
from ollampi.mpiruntime.safetensors_header import TensorEntry
from ollampi.mpiruntime.source import Read, Source
from ollampi.mpiruntime.stored import Held
from ollampi.mpiruntime.strict_json import read_object

_FLOATS = {"F64", "F32", "F16", "BF16"}
_SIGNS = [  # what names of tensors end with, and what writes them
    (r"\.(qweight|qzeros|scales|g_idx)", "AWQ or GPTQ"),
    (r"\.weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+)|\.SCB", "bitsandbytes"),
    (r"\.(weight_packed|weight_shape|weight_zero_point)", "compressed-tensors"),
    (r"\.(weight_scale|weight_scale_inv|input_scale|weight_scale_2)", "FP8 or another format with scales"),
    (r"_(blocks|scales)", "MXFP4"),
]
_TOLD = {"awq": "AWQ", "gptq": "GPTQ", "fp8": "FP8"}
_OF_ACTIVATIONS = r"\.(input_scale|input_scale_ub|activation_scale|output_scale|[qkv]_scale|kv_scale|prob_scale)$"


@dataclass
class Prequantised:
    """The sources of quantised matrices by name, and the entries of all other tensors that are of use."""

    sources: dict[str, Source] = field(default_factory=dict)
    rest: dict[str, TensorEntry] = field(default_factory=dict)


def prequantised_sources(folder: Path, entries: dict[str, TensorEntry], read: Read) -> Prequantised:
    """Return the quantised matrices of a checkpoint as sources, by its tensors and config.json's quantization_config.

    What that tells counts where there is a quantised tensor: some keep it beside plain weights. Raise CheckpointError
    where the tensors do not fit each other, or there is one of a method that is not read.
    """
    config = _quantization_config(folder)
    found = Prequantised(rest=dict(entries))
    for name, entry in entries.items():
        if name.endswith(".weight") and entry.dtype == "F8_E4M3" and len(entry.shape) == 2:
            _take_float8(found, entry, config)
        elif name.endswith(".qweight") and entry.dtype == "I32" and len(entry.shape) == 2:
            _take_packed(found, entry, config, read)
    if any(isinstance(source, Float8) for source in found.sources.values()):
        found.rest = {name: entry for name, entry in found.rest.items() if not re.search(_OF_ACTIVATIONS, name)}
    _refuse(found.rest.values(), _method(config))
    for name in found.sources.keys() & found.rest.keys():
        raise CheckpointError(f"{found.rest[name].path}: tensor {name!r} is there plain and quantised; fetch it again")
    return found


def _take_float8(found: Prequantised, entry: TensorEntry, config: dict[str, Any]) -> None:
    """Make a source of an FP8 matrix that has scales."""
    scales = next((found.rest[n] for n in (f"{entry.name}_scale_inv", f"{entry.name}_scale") if n in found.rest), None)
    if scales is not None:
        found.sources[entry.name] = Float8(entry.name, entry, scales, _block(config))
        del found.rest[entry.name], found.rest[scales.name]


def _take_packed(found: Prequantised, words: TensorEntry, config: dict[str, Any], read: Read) -> None:
    """Make a source of an AWQ or GPTQ matrix."""
    stem = words.name.removesuffix(".qweight")
    parts = [found.rest.get(f"{stem}.{part}") for part in ("qzeros", "scales")]
    packing = _packing(config)
    if packing is None or parts[0] is None or parts[1] is None:
        return
    held = next((s.held for s in found.sources.values() if isinstance(s, Packed)), None) or Held()
    matrix = Packed(f"{stem}.weight", packing, words, parts[0], parts[1], held)
    index = found.rest.get(f"{stem}.g_idx")
    if index is not None and packing.kind == "GPTQ":
        matrix.index = group_index(index, matrix.shape[1], packing.group, read)
        del found.rest[index.name]
    matrix.decide_bits(read)
    found.sources[matrix.name] = matrix
    for part in (words, *parts):
        if part is not None:
            del found.rest[part.name]


def _packing(config: dict[str, Any]) -> Packing | None:
    """Return how config.json says that numbers are packed, or None where that is not known here."""
    method, bits = _method(config), config.get("bits", config.get("w_bit"))
    group = config.get("group_size", config.get("q_group_size"))
    if type(group) is not int or (group != -1 and not 0 < group < 2**31):
        return None
    size = None if group == -1 else group
    if method == "awq" and bits == 4 and str(config.get("version", "gemm")).lower() == "gemm":
        return Packing("AWQ", 4, size, symmetric=config.get("zero_point") is False)
    formats = {"gptq": 1, "gptq_v2": 0}  # what is added to the zeros of the file
    told = config.get("checkpoint_format", config.get("format", "gptq"))
    if method == "gptq" and bits in (4, 8) and isinstance(told, str) and told in formats:
        return Packing("GPTQ", bits, size, formats[told], symmetric=config.get("sym", True) is True)
    return None


def _block(config: dict[str, Any]) -> tuple[int, int]:
    """Return the rows and columns of a block with one scale."""
    size = config.get("weight_block_size")
    for group in config["config_groups"].values() if isinstance(config.get("config_groups"), dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        size = size or (weights.get("block_structure") if isinstance(weights, dict) else None)
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n < 2**31 for n in size):
        return size[0], size[1]
    return BLOCK


def _refuse(entries: Iterable[TensorEntry], method: str | None) -> None:
    """Raise CheckpointError where a tensor is one of a quantised checkpoint of another method."""
    for entry in entries:
        sign = _sign(entry) or (method if entry.dtype not in _FLOATS else None)
        if sign is not None:
            raise CheckpointError(
                f"{entry.path}: tensor {entry.name!r} of dtype {entry.dtype} shows that this is quantised already"
                f" ({_TOLD.get(method or '', method) or sign}), in a way that is not read; take the checkpoint that it"
                " was made from, in BF16, F16 or F32, and set quantize=q8 or quantize=q4, or one in FP8 (e4m3), AWQ"
                " (4 bits, version gemm) or GPTQ (4 or 8 bits) with its quantization_config in config.json"
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


def _method(config: dict[str, Any]) -> str | None:
    """Return the name of the method that config.json tells of, or None."""
    method = config.get("quant_method")
    return method[:40] if isinstance(method, str) and method else None


def _quantization_config(folder: Path) -> dict[str, Any]:
    """Return quantization_config of config.json, or nothing where it has none."""
    try:
        config = read_object(folder / "config.json").get("quantization_config")
    except CheckpointError:  # it is for who reads the rest of it to say
        return {}
    return config if isinstance(config, dict) else {}
