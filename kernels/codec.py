"""Numbers in few bytes, for the exchange between ranks: the format on the wire, and the codecs that define it.

A vector of n numbers in fp32 is cut into groups of 32; the last group is filled up with zeros. The codes of all groups
come first, then a scale in bf16 for each group; everything has its little end first. A number is its code times its
scale, which is exact in fp32, or infinite where that is beyond it. By level:

0. fp32; no groups, no scales
1. bf16, rounded to the nearest, ties to even, NaN to 0x7fc0; no groups, no scales
2. int8: the scale is the largest size of the group over 127, rounded up; a code is x * (1 / scale), rounded to the
   nearest, ties to even
3. fp8 (E4M3 without infinities, Micikevicius et al., 2022): the scale is the largest size over 448, rounded up; a code
   is x * (1 / scale), rounded likewise, with the sign of x where it is 0
4. int4: the scale is the number of largest size over -8, rounded to the nearest (of the largest and the least number,
   the least where they are of one size); a code is x * (1 / scale), rounded and held within -8 to 7. Byte i of the 16
   of a group holds 8 more than the codes of numbers i (low half) and i + 16 (high half).

Where all numbers of a group are smaller than 2^-100, its scale and all codes are 0 (in level 4 bytes 0x88). Where one
is not finite, the scale is NaN (0x7fc0) and the codes are those of zeros, so that all of the group reads as NaN. These
zeros are positive. Sums are in fp32, in the order of their parts; which NaN a sum is, is not said. Quotients, products
and sums are rounded one by one, as IEEE 754 has them, also below its normal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels.groups import GROUP
from ollampi.kernels.ops import rms_norm_torch

NAMES = ("fp32", "bf16", "int8", "fp8", "int4")  # of the levels
SMALLEST = 2.0**-100  # a group of smaller numbers counts as zeros
CODE_BYTES = {0: 4.0, 1: 2.0, 2: 1.0, 3: 1.0, 4: 0.5}
_SCALE_BYTES = 2
_NAN = 0x7FC0  # in bf16
_HIGHEST = {2: 127.0, 3: 448.0}


class Codec(Protocol):
    """Brings vectors into the bytes of one level and back; every codec of a level makes the same bits."""

    level: int

    def encode(self, x: Tensor, codes: Tensor) -> None:
        """Write x [n] in fp32 into codes, uint8 [num_bytes(level, n)]; both contiguous, on the codec's device."""

    def decode_sum(self, parts: Sequence[Tensor], out: Tensor) -> None:
        """Write the sum of the vectors that the parts, uint8 [num_bytes(level, n)] each, hold into out [n] in fp32."""

    def recode(self, parts: Sequence[Tensor], codes: Tensor) -> None:
        """Write the sum of what the parts hold into codes, all uint8 [num_bytes(level, n)]; codes may be a part."""

    def decode_sum_norm(
        self, parts: Sequence[Tensor], residual: Tensor, weight: Tensor, eps: float, normed: Tensor
    ) -> None:
        """Add the sum of what the parts hold to residual [T, D]; write the RMSNorm of that into normed [T, D].

        The parts, uint8 [num_bytes(level, T * D)] each, hold the rows one after the other. residual, normed: fp32;
        weight [D], which the norm is scaled by: fp32 or bf16. Every codec leaves the same bits in the residual; normed
        differs by the rounding of its sums. All are contiguous.
        """


def num_bytes(level: int, count: int) -> int:
    """Return the bytes of a vector of `count` numbers."""
    if level < 2:
        return int(CODE_BYTES[level]) * count
    groups = -(-count // GROUP)
    return int(groups * GROUP * CODE_BYTES[level]) + _SCALE_BYTES * groups


def most_numbers(level: int, size: int) -> int:
    """Return how many numbers a vector of `size` bytes can have: all of the last group."""
    unit = 1 if level < 2 else GROUP
    return size // num_bytes(level, unit) * unit


class Reference:
    """The codec of a level in torch's operators, on any device: what the native and the CUDA ones must equal."""

    def __init__(self, level: int) -> None:
        self.level = level

    def encode(self, x: Tensor, codes: Tensor) -> None:
        """Write x [n] in fp32 into codes, uint8 [num_bytes(level, n)]."""
        if self.level < 2:
            codes.copy_((x if self.level == 0 else _with_nan(x.bfloat16(), x.isnan())).view(torch.uint8))
            return
        groups = F.pad(x, (0, -len(x) % GROUP)).view(-1, GROUP)
        scales = _scales(groups, self.level)
        factors = 1 / scales.float()
        scaled = torch.where(torch.isfinite(factors)[:, None], groups * factors[:, None], 0.0)
        cut = codes.numel() - scales.nbytes
        codes[:cut] = _packed(scaled, self.level).flatten()
        codes[cut:] = scales.view(torch.uint8)

    def decode_sum(self, parts: Sequence[Tensor], out: Tensor) -> None:
        """Write the sum of the vectors that parts, uint8 [num_bytes(level, n)] each, hold into out [n] in fp32."""
        out.copy_(self._decoded(parts[0], len(out)))
        for part in parts[1:]:
            out += self._decoded(part, len(out))

    def recode(self, parts: Sequence[Tensor], codes: Tensor) -> None:
        """Write the sum of what the parts hold into codes, all uint8 [num_bytes(level, n)]; codes may be a part."""
        total = torch.empty(most_numbers(self.level, codes.numel()), device=codes.device)
        self.decode_sum(parts, total)
        self.encode(total, codes)

    def decode_sum_norm(
        self, parts: Sequence[Tensor], residual: Tensor, weight: Tensor, eps: float, normed: Tensor
    ) -> None:
        """Add the sum of what the parts hold to residual [T, D]; write the RMSNorm of that into normed [T, D]."""
        total = torch.empty_like(residual)
        self.decode_sum(parts, total.view(-1))
        residual += total
        normed.copy_(rms_norm_torch(residual, weight, eps))

    def _decoded(self, codes: Tensor, count: int) -> Tensor:
        """Return the vector [count] of one part in fp32."""
        if self.level < 2:
            return codes.view(torch.float32 if self.level == 0 else torch.bfloat16).float()
        cut = int(most_numbers(self.level, codes.numel()) * CODE_BYTES[self.level])
        scales = codes[cut:].clone().view(torch.bfloat16).float()
        return (_unpacked(codes[:cut], self.level) * scales[:, None]).flatten()[:count]


def _scales(groups: Tensor, level: int) -> Tensor:
    """Return the scales [G] in bf16 of groups [G, 32]."""
    high, low = groups.amax(-1), groups.amin(-1)
    if level == 4:
        scales = (torch.where(high > -low, high, low) / -8).bfloat16()
    else:
        tops = torch.maximum(high, -low) / high.new_tensor(_HIGHEST[level])  # CUDA divides by a number inexactly
        bits = tops.view(torch.int32)
        scales = ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
    scales[torch.maximum(high, -low) < SMALLEST] = 0.0
    return _with_nan(scales, ~torch.isfinite(groups).all(-1))


def _with_nan(x: Tensor, mask: Tensor) -> Tensor:
    """Return x [n] in bf16, its bits 0x7fc0 where mask [n] is set: torch's own NaN depends on the place in a vector."""
    return x.view(torch.int16).masked_fill_(mask, _NAN).view(torch.bfloat16)


def _packed(scaled: Tensor, level: int) -> Tensor:
    """Return the codes, uint8 [G, bytes], of numbers over their scales [G, 32]."""
    if level == 2:
        return scaled.round().to(torch.int8).view(torch.uint8)
    if level == 3:
        return scaled.to(torch.float8_e4m3fn).view(torch.uint8)
    whole = (scaled.round().clamp(-8, 7) + 8).to(torch.uint8)
    return whole[:, : GROUP // 2] | whole[:, GROUP // 2 :] << 4


def _unpacked(codes: Tensor, level: int) -> Tensor:
    """Return the codes [G, 32] of bytes as fp32."""
    if level == 2:
        return codes.view(torch.int8).float().view(-1, GROUP)
    if level == 3:
        return codes.view(torch.float8_e4m3fn).float().view(-1, GROUP)
    pairs = codes.view(-1, GROUP // 2)
    return torch.cat([pairs & 15, pairs >> 4], dim=1).float() - 8
