"""Read matrices of FP8 numbers, each times the scale of its matrix, its row or its block.

DeepSeek-V3's README_WEIGHTS.md (weight_scale_inv, blocks of 128 x 128) and compressed-tensors' "float-quantized"
format (weight_scale) both mean: weight = number * scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.safetensors_header import TensorEntry
from ollampi.mpiruntime.source import Read, Rows
from ollampi.mpiruntime.stored import some_rows, whole

BLOCK = (128, 128)
_SCALES = {"F32", "BF16", "F16"}


@dataclass
class Float8:
    """A matrix [out, in] of e4m3 numbers; block: rows and columns that share a scale where a block has one."""

    name: str
    numbers: TensorEntry
    scales: TensorEntry
    block: tuple[int, int]
    kind: str = "FP8"
    bits: int | None = None
    path: Path = field(init=False)
    shape: tuple[int, ...] = field(init=False)
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Raise CheckpointError where the scales fit the matrix in no way."""
        self.path, self.shape = self.numbers.path, self.numbers.shape
        self.size_bytes = self.numbers.size_bytes + self.scales.size_bytes
        out, width = self.shape
        blocks = (-(-out // self.block[0]), -(-width // self.block[1]))
        self._by_block = self.scales.shape == blocks
        self._by_row = self.scales.shape in ((out,), (out, 1))
        if self.scales.dtype not in _SCALES or not (self._by_block or self._by_row or self.scales.num_elements == 1):
            raise CheckpointError(
                f"{self.scales.path}: tensor {self.scales.name!r} has dtype {self.scales.dtype} and shape"
                f" {list(self.scales.shape)}; scales of {self.name!r} of shape {list(self.shape)} must be of"
                f" {', '.join(sorted(_SCALES))} and one, one for each row, or {list(blocks)} for blocks of"
                f" {list(self.block)}"
            )

    def rows(self, first: int, last: int, read: Read) -> Rows:
        """Return rows [first, last) in fp32."""
        values = some_rows(self.numbers, first, last, read).float()
        return Rows(values.mul_(self._scales(first, last, read)))

    def _scales(self, first: int, last: int, read: Read) -> Tensor:
        """Return the scales of some rows, [] or [R, 1] or [R, in], in fp32."""
        if self.scales.num_elements == 1:
            return whole(self.scales, read).float().view(())
        if self._by_row:
            return some_rows(self.scales, first, last, read).float().view(-1, 1)
        tall, wide = self.block
        top, bottom = first // tall, -(-last // tall)
        scales = some_rows(self.scales, top, bottom, read).float().repeat_interleave(wide, 1)[:, : self.shape[1]]
        return scales.repeat_interleave(tall, 0)[first - top * tall : last - top * tall]
