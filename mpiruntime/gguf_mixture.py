"""Tell in which type each tensor of a quantised GGUF file is kept.

The rules are llama.cpp's (src/llama-quant.cpp), which Ollama's are drawn from (server/quantization.go): what matters
most to the answers gets more bits than the level's name says.
"""

from __future__ import annotations

import re

from ollampi.mpiruntime.gguf_header import GgufFile, GgufTensor
from ollampi.mpiruntime.gguf_types import BLOCKS

# By the names that `create` takes, in lower case: llama.cpp's number of the file type, and the type of most tensors.
LEVELS = {
    "f32": (0, "F32"),
    "f16": (1, "F16"),
    "q8_0": (7, "Q8_0"),
    "q4_k_s": (14, "Q4_K"),
    "q4_k_m": (15, "Q4_K"),
    "q4_k": (15, "Q4_K"),
    "bf16": (32, "BF16"),
}
PLAIN = ("F32", "F16", "BF16")
_VALUES = {blocks.name: blocks.values for blocks in BLOCKS.values()}
_KEPT = re.compile(  # norms, routers, an encoder's tables of places, and what sees or hears
    r".*_norm\.weight|.*ffn_gate_inp\.weight|position_embd\.weight|token_types\.weight|(v|a|mm)\..*|rope_.*"
)
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+?)(_exps|\.\d+)?\.weight")
_INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # where rows are no multiple of 256


def new_type(file: GgufFile, tensor: GgufTensor, level: str) -> str:
    """Return the type of one of the file's tensors at a level of LEVELS."""
    if len(tensor.shape) < 2 or not tensor.name.endswith("weight") or _KEPT.fullmatch(tensor.name):
        return tensor.blocks.name
    kind = LEVELS[level][1]
    if kind in PLAIN:
        return kind
    width = tensor.shape[-1]
    if tensor.name == "output.weight" or (tensor.name == "token_embd.weight" and "output.weight" not in file.tensors):
        kind = "Q8_0" if width % _VALUES[kind] or kind == "Q8_0" else "Q6_K"
    elif match := _IN_LAYER.fullmatch(tensor.name):
        kind = _in_layer(file, match[2], int(match[1]), level) or kind
    if width % _VALUES[kind]:
        kind = _INSTEAD.get(kind, "F16")
    return kind if width % _VALUES[kind] == 0 else "F16"


def _in_layer(file: GgufFile, part: str, layer: int, level: str) -> str | None:
    """Return the type of a part of a layer, None for that of most tensors."""
    architecture = file.metadata.get("general.architecture")
    layers = _count(file, f"{architecture}.block_count")
    eight_experts = _count(file, f"{architecture}.expert_count") == 8
    if eight_experts and part in ("attn_k", "attn_v"):
        return "Q8_0"
    if level == "q8_0":
        return None
    if eight_experts and part == "attn_output":
        return "Q5_K"
    small = level == "q4_k_s"
    if part in ("attn_v", "attn_qkv"):
        if layer < 4 if small else _matters(layer, layers):
            return "Q5_K" if small else "Q6_K"
        return "Q5_K" if layers == 80 and _shares_heads(file, str(architecture)) else None
    if part == "ffn_down":
        if small:
            return "Q5_K" if layer < layers // 8 else None
        return "Q6_K" if _matters(layer, layers) else None
    return None


def _matters(layer: int, layers: int) -> bool:
    """Return whether a layer is of the first or last eighth, or every third between them."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _shares_heads(file: GgufFile, architecture: str) -> bool:
    """Return whether this is a Llama or Qwen 2 whose queries share heads of values: with 80 layers one of 70 B."""
    heads, shared = (_count(file, f"{architecture}.attention.{key}") for key in ("head_count", "head_count_kv"))
    return architecture == "qwen2" or (architecture == "llama" and heads != (shared or heads))


def _count(file: GgufFile, key: str) -> int:
    value = file.metadata.get(key, 0)
    return value if type(value) is int else 0
