"""Blocks of ggml's types are what the gguf package reads, and no worse than those that ggml itself makes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from ollampi.kernels.gguf_quants import LARGEST, pack, unpack

Floats = NDArray[np.float32]
K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")


def drawn(name: str, shape: tuple[int, int] = (24, 768)) -> Floats:
    """Return numbers of one of several distributions."""
    rng = np.random.default_rng(3)
    kinds: dict[str, Callable[[], NDArray[np.float64]]] = {
        "normal": lambda: rng.standard_normal(shape) * 0.02,
        "heavy tails": lambda: rng.standard_t(3, shape) * 0.02,
        "uniform": lambda: rng.random(shape) - 0.3,
        "above zero": lambda: rng.random(shape) + 0.3,
        "below zero": lambda: rng.random(shape) - 5,
        "rows of other sizes": lambda: rng.standard_normal(shape) * np.logspace(-3, 3, shape[0])[:, None],
    }
    return kinds[name]().astype(np.float32)


DRAWN = ("normal", "heavy tails", "uniform", "above zero", "below zero", "rows of other sizes")


def numbers(raw: NDArray[np.uint8], kind: str) -> Floats:
    """Return what the gguf package reads."""
    found: Floats = gguf.quants.dequantize(raw, Kind[kind]).astype(np.float32)
    return found


def square_error(raw: NDArray[np.uint8], kind: str, rows: Floats) -> float:
    return float(np.square(numbers(raw, kind).astype(np.float64) - rows).mean())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("name", DRAWN)
def test_simple_types_are_made_as_the_gguf_package_makes_them(kind: str, name: str) -> None:
    rows = drawn(name)
    rows[1, :64], rows[2, :32] = 0, np.arange(32) / 2  # halves are rounded away from zero
    wanted = gguf.quants.quantize(rows, Kind[kind]).view(np.uint8).reshape(len(rows), -1)
    np.testing.assert_array_equal(pack(kind, rows), wanted)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_numbers_are_read_as_the_gguf_package_reads_them(kind: str) -> None:
    raw = pack(kind, drawn("heavy tails"))
    np.testing.assert_array_equal(unpack(kind, raw), numbers(raw, kind).reshape(24, -1))


@pytest.mark.parametrize(("kind", "codes"), [("Q4_K", 15), ("Q5_K", 31), ("Q6_K", 63)])
@pytest.mark.parametrize("name", DRAWN)
def test_k_quants_are_better_than_rounding_ranges(kind: str, codes: int, name: str) -> None:
    """Rounding takes the exact range of each group; of numbers far below zero it need not take in the zero."""
    rows = drawn(name)
    groups = rows.reshape(-1, 16 if kind == "Q6_K" else 32)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    if kind == "Q6_K":
        high = np.abs(groups).max(axis=1, keepdims=True)
        low = -high
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    rounded = np.rint((groups - low) / (high - low) * codes) / codes * (high - low) + low
    allowed = 1.3 if name == "below zero" else 1.0
    assert square_error(pack(kind, rows), kind, rows) < allowed * float(np.square(rounded - groups).mean())


@pytest.mark.parametrize("kind", K_QUANTS)
@pytest.mark.parametrize("name", DRAWN)
def test_k_quants_are_no_worse_than_those_of_ggml(kind: str, name: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs the peers extra")
    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so"))))
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
        ctypes.c_void_p,
    ]
    rows = drawn(name)
    theirs = np.empty_like(pack(kind, rows))
    library.ggml_quantize_chunk(int(Kind[kind]), rows.ctypes.data, theirs.ctypes.data, 0, *rows.shape, None)
    assert square_error(pack(kind, rows), kind, rows) <= 1.05 * square_error(theirs, kind, rows)


@pytest.mark.parametrize("kind", [*K_QUANTS, "Q8_0", "Q5_0", "Q5_1"])
def test_what_a_group_can_hold_exactly_stays_so(kind: str) -> None:
    """Zeros, and numbers too small for a scale in fp16, which are zeros as well."""
    rows = np.zeros((2, 512), np.float32)
    rows[0, :256] = 1e-12
    np.testing.assert_allclose(numbers(pack(kind, rows), kind).reshape(2, 512), np.zeros((2, 512)), atol=1e-11)


@pytest.mark.parametrize("kind", [*K_QUANTS, "Q8_0", "Q5_0", "Q5_1", "F16"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_numbers_stay_finite(kind: str, sign: int) -> None:
    rows = np.full((1, 256), sign * LARGEST, np.float32)
    rows[0, ::7] = 0
    found = numbers(pack(kind, rows), kind).reshape(1, 256)
    np.testing.assert_allclose(found, rows, rtol=0.01, atol=0.01 * LARGEST)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_numbers_of_one_value_and_lone_ones_are_kept(kind: str) -> None:
    rows = np.zeros((3, 256), np.float32)
    rows[0, 5], rows[1, 200], rows[2] = 3.0, -2.0, -1.5
    found = numbers(pack(kind, rows), kind).reshape(3, 256)
    np.testing.assert_allclose(found, rows, atol=0.03)
