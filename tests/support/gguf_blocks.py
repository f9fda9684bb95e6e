"""Make the bytes of GGUF blocks: by the gguf package where it can quantise, else random ones with sane scales."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

STD = 0.1  # about that of random blocks
# Where in a block a scale in fp16 lies, and what it is: numbers then have a mean of about 0 and a deviation of STD.
_SCALES: dict[str, dict[int, float]] = {
    "Q2_K": {80: 0.008, 82: 0.012},
    "Q3_K": {108: 0.0025},
    "Q4_K": {0: 0.0004, 2: 0.003},
    "Q5_K": {0: 0.0002, 2: 0.0031},
    "Q6_K": {208: 0.00007},
    "IQ2_XXS": {0: 0.01},
    "IQ2_XS": {0: 0.01},
    "IQ2_S": {0: 0.01},
    "IQ3_XXS": {0: 0.002},
    "IQ3_S": {0: 0.0008},
    "IQ1_S": {0: 0.01},
    "IQ4_NL": {0: 0.0015},
    "IQ4_XS": {0: 0.00008},
    "TQ1_0": {52: 0.1},
    "TQ2_0": {64: 0.1},
}
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # by the package
ALL = ("F32", "F16", "BF16", *QUANTISED, *_SCALES, "IQ1_M", "MXFP4")


def blocks(values: NDArray[np.float32], kind: str, rng: np.random.Generator) -> NDArray[np.generic]:
    """Return rows of `values` [..., width] as they stand in a file; of types that cannot be made, random numbers."""
    if kind in ("F32", "F16", "BF16", *QUANTISED):
        return gguf.quants.quantize(values, Kind[kind])
    size, size_bytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    raw = rng.integers(0, 256, (values.size // size, size_bytes), dtype=np.uint8)
    for at, scale in _SCALES.get(kind, {}).items():
        raw[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    if kind == "MXFP4":
        raw[:, 0] = 123  # an exponent: 2 ** (123 - 128) halves
    if kind == "IQ1_M":  # the scale's bits are the high halves of the last 8 bytes' words
        raw[:, -7::2] = (raw[:, -7::2] & 15) | np.array([0, 0, 0, 2], np.uint8) << 4
    return raw.reshape(*values.shape[:-1], -1)


def numbers(raw: NDArray[np.generic], kind: str) -> NDArray[np.float32]:
    """Return what the gguf package reads from blocks."""
    values: NDArray[np.float32] = gguf.quants.dequantize(raw, Kind[kind]).astype(np.float32)
    return values
