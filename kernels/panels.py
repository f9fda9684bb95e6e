"""Lay numbers out in panels of 16 rows and groups of 32 inputs, as kernels/cpu/matmul.h says, and bring them back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels.groups import GROUP, ROWS


def filled_up(weight: Tensor) -> Tensor:
    """Return weight [out, in] in fp32 with zeros that make whole panels and groups."""
    return F.pad(weight.float(), (0, -weight.shape[1] % GROUP, 0, -weight.shape[0] % ROWS))


def whole_numbers(quads: Tensor, bits: int) -> Tensor:
    """Return the numbers [panels, R, groups, 8, 4] that bytes [panels, groups, bits, R, 4] stand for, in fp32."""
    if bits == 4:
        quads = torch.stack((quads & 15, quads >> 4), 3).flatten(2, 3)
    return quads.permute(0, 3, 1, 2, 4).float() - (1 << (bits - 1))


def by_panel(rows: Tensor) -> Tensor:
    """Return rows [R, groups] as [panels, groups, 16]."""
    return split(rows, 0, -1, ROWS).transpose(1, 2).contiguous()


def in_panels(stored: Tensor, bits: int) -> Tensor:
    """Return numbers [R, groups, 32] as [panels, groups, 64 * bits]."""
    quads = split(split(stored, 2, 8, 4), 0, -1, ROWS).permute(0, 2, 3, 1, 4)  # [panels, groups, 8, 16, 4]
    if bits == 4:
        quads = quads[:, :, 0::2] | quads[:, :, 1::2] << 4
    return quads.flatten(2).contiguous()


def split(x: Tensor, dim: int, *sizes: int) -> Tensor:
    """Return x [...] with one dimension cut into several; -1 is what the others leave."""
    known = math.prod(size for size in sizes if size >= 0)
    sizes = tuple(x.shape[dim] // known if size < 0 else size for size in sizes)
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])
