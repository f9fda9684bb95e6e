"""Matrices that are read in pieces of any size, of several tensors, are those of all rows at once."""

from __future__ import annotations

import pytest
import torch
from support.arithmetic import DRAW

from ollampi.kernels.quantised import NotExact, NotFinite, dequantise
from ollampi.mpiruntime.filling import ExactFilling
from ollampi.mpiruntime.source import Rows

BITS = pytest.mark.parametrize("bits", [8, 4])


def coded(num_rows: int, width: int, bits: int) -> Rows:
    """Return rows of whole numbers times scales."""
    middle = 1 << (bits - 1)
    codes = torch.randint(-middle, middle, (num_rows, width // 32, 32), generator=DRAW)
    scales = torch.randn(num_rows, width // 32, generator=DRAW).half()
    return Rows((codes * scales.float()[..., None]).flatten(1), scales)


@BITS
@pytest.mark.parametrize("pieces", [[5, 3, 24, 1, 0, 20], [16, 32, 5], [53], [1] * 53, [15, 17, 21]])
def test_rows_of_any_pieces(bits: int, pieces: list[int]) -> None:
    rows = coded(53, 96, bits)
    assert rows.scales is not None
    filling, first = ExactFilling(53, 96, bits, torch.bfloat16), 0
    for count in pieces:
        part, scales = rows.values[first : first + count].clone(), rows.scales[first : first + count].clone()
        filling.add(Rows(part, scales))
        part.fill_(torch.nan)  # a reader's buffer is used again
        first += count
    matrix = filling.matrix()
    assert matrix.dtype == torch.bfloat16
    assert matrix.scales.dtype == torch.float16
    assert torch.equal(dequantise(matrix), rows.values)


@BITS
def test_cut_columns(bits: int) -> None:
    rows = coded(20, 160, bits)
    assert rows.scales is not None
    filling = ExactFilling(20, 64, bits, torch.float32)
    filling.add(Rows(rows.values[:, 96:], rows.scales[:, 3:]))
    assert torch.equal(dequantise(filling.matrix()), rows.values[:, 96:])


@BITS
@pytest.mark.parametrize(("bad", "error"), [(torch.nan, NotFinite), (1e5, NotExact)])
def test_rows_that_wait_are_refused_with_their_own_tensor(bits: int, bad: float, error: type[ValueError]) -> None:
    rows, filling = coded(3, 32, bits), ExactFilling(20, 32, bits, torch.float32)
    rows.values[1, 7] = bad
    with pytest.raises(error):
        filling.add(rows)


def test_rows_without_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="QuantisedFilling"):
        ExactFilling(20, 32, 8, torch.float32).add(Rows(torch.zeros(20, 32)))
