"""Turn the bytes of a GGUF tensor's rows into numbers.

A block of Q8_0 is a scale in fp16 and 32 int8; one of Q4_0 a scale and 16 bytes, whose low halves are its first 16
numbers and whose high halves the others, each 8 too large. The `gguf` package (quants.py) knows all other types.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch
from torch import Tensor

from ollampi.mpiruntime.source import Rows

BITS = {"Q8_0": 8, "Q4_0": 4}  # of types whose numbers are whole ones times a scale for each 32
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def rows_of(kind: str, raw: Tensor) -> Rows:
    """Return rows [R, width] from their bytes `raw` [R, bytes of a row] as they are in the file.

    Numbers of F32, F16 and BF16 keep their type, others are fp32.
    """
    if kind in PLAIN:
        return Rows(raw.view(PLAIN[kind]))
    if kind == "Q8_0":
        return _q8_0(raw)
    if kind == "Q4_0":
        return _q4_0(raw)
    with np.errstate(over="ignore", invalid="ignore"):  # scales may be infinite or NaN, which the loader refuses
        return Rows(torch.from_numpy(gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind])))


def _q8_0(raw: Tensor) -> Rows:
    blocks = raw.view(len(raw), -1, 34)
    scales = blocks[..., :2].contiguous().view(torch.float16)
    values = blocks[..., 2:].view(torch.int8).float().mul_(scales.float())
    return Rows(values.flatten(1), scales.squeeze(-1))


def _q4_0(raw: Tensor) -> Rows:
    blocks = raw.view(len(raw), -1, 18)
    scales = blocks[..., :2].contiguous().view(torch.float16)
    packed = blocks[..., 2:].contiguous()
    codes = torch.cat([packed & 15, packed >> 4], dim=-1).view(torch.int8).sub_(8)
    return Rows(codes.float().mul_(scales.float()).flatten(1), scales.squeeze(-1))
