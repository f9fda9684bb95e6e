"""Choose the codec of a level and a device; that of CPUs, in C."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from ollampi.kernels import gpu, native
from ollampi.kernels.codec import Codec, Reference, most_numbers


def codec_of(level: int, device: torch.device) -> Codec:
    """Return the fastest codec of a level, 0 to 4, for tensors of a device; on CUDA without cupy, torch's operators."""
    if device.type == "cuda" and gpu.lacking() is None:
        return gpu.CudaCodec(level, device)
    return Native(level) if device.type == "cpu" and native.library() is not None else Reference(level)


class Native:
    """The codec of a level in C, on the CPU, with as many threads as torch has in the calling thread.

    Short vectors take one thread. Needs the native library; checks nothing that it is given.
    """

    def __init__(self, level: int, instructions: int | None = None) -> None:
        """instructions: of native.levels(); None for the best."""
        self.level = level
        self._with = native.level() if instructions is None else instructions
        self._encode = native.function("encode")
        self._decode_sum = native.function("decode_sum")
        self._recode = native.function("recode")
        self._decode_sum_norm = native.function("decode_sum_norm")

    def encode(self, x: Tensor, codes: Tensor) -> None:
        """Write x [n] in fp32 into codes, uint8 [num_bytes(level, n)]."""
        self._encode(self._with, self.level, x.data_ptr(), x.numel(), codes.data_ptr())

    def decode_sum(self, parts: Sequence[Tensor], out: Tensor) -> None:
        """Write the sum of the vectors that parts, uint8 [num_bytes(level, n)] each, hold into out [n] in fp32."""
        self._decode_sum(self._with, self.level, _places(parts), len(parts), out.numel(), out.data_ptr())

    def recode(self, parts: Sequence[Tensor], codes: Tensor) -> None:
        """Write the sum of what the parts hold into codes, all uint8 [num_bytes(level, n)]; codes may be a part."""
        count = most_numbers(self.level, codes.numel())
        self._recode(self._with, self.level, _places(parts), len(parts), count, codes.data_ptr())

    def decode_sum_norm(
        self, parts: Sequence[Tensor], residual: Tensor, weight: Tensor, eps: float, normed: Tensor
    ) -> None:
        """Add the sum of what the parts hold to residual [T, D]; write the RMSNorm of that into normed [T, D].

        What ops.rms_norm gives, with the same bits.
        """
        sums = self._with, self.level, _places(parts), len(parts), residual.data_ptr()
        scaled = weight.data_ptr(), native.number_of(weight.dtype), eps
        self._decode_sum_norm(*sums, *scaled, *residual.shape, normed.data_ptr())


def _places(parts: Sequence[Tensor]) -> bytes:
    """Return an array of pointers to the parts, which must outlive the call it is for."""
    return _packer(len(parts))(*map(Tensor.data_ptr, parts))


@cache
def _packer(count: int) -> Callable[..., bytes]:
    """Return what makes an array of so many pointers."""
    return struct.Struct(f"{count}P").pack
