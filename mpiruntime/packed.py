"""Read matrices of whole numbers of 4 or 8 bits that are packed into words, as AWQ and GPTQ keep them.

weight = (number - zero) * scale, with a zero and a scale for each group of inputs. Both keep the matrix [in, out]:

AWQ (AutoAWQ, version GEMM): a word of qweight [in, out / 8] has eight outputs of one input, the lowest four bits those
of output 0, then 2, 4, 6, 1, 3, 5, 7; qzeros [groups, out / 8] likewise; scales [groups, out].
GPTQ (AutoGPTQ): a word of qweight [in / 8, out] has eight inputs of one output, in order; qzeros [groups, out / 8] in
order, less one in the format "gptq" and as they are in "gptq_v2"; g_idx [in] tells the group of each input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ollampi.kernels.groups import GROUP
from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.safetensors_header import TensorEntry
from ollampi.mpiruntime.source import Read, Rows
from ollampi.mpiruntime.stored import Held, whole

_AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # in a word, of outputs 0 to 7
_SCALES = {"F16", "BF16", "F32"}
_MIDDLE = 8  # the zero of symmetric numbers of 4 bits


@dataclass(frozen=True)
class Packing:
    """How a checkpoint packs its numbers: "AWQ" or "GPTQ", bits of a number, inputs of a group (None for all).

    offset: what is to be added to the zeros of the file; symmetric: whether it says that all zeros are 8.
    """

    kind: str
    bits: int
    group: int | None
    offset: int = 0
    symmetric: bool = False

    @property
    def per_word(self) -> int:
        """Return the numbers in a word."""
        return 32 // self.bits

    def shape(self, words: TensorEntry) -> tuple[int, int]:
        """Return the shape [out, in] of the matrix whose qweight is `words` [_, _]."""
        high, wide = words.shape
        return (wide * self.per_word, high) if self.kind == "AWQ" else (wide, high * self.per_word)

    def numbers(self, words: Tensor, first: int, last: int) -> Tensor:
        """Return rows [first, last) of the matrix [out, in] as uint8."""
        if self.kind == "AWQ":
            return self._along_outputs(words, first, last).T.contiguous()
        return _digits(words[:, first:last].T, self.bits)

    def zeros(self, words: Tensor, first: int, last: int) -> Tensor:
        """Return the zeros [groups, last - first] of rows [first, last)."""
        return self._along_outputs(words, first, last).int() + self.offset

    def _along_outputs(self, words: Tensor, first: int, last: int) -> Tensor:
        """Return columns [first, last) of numbers that are packed along them, words [_, out / per_word], as uint8."""
        begin = first // self.per_word
        digits = _digits(words[:, begin : -(-last // self.per_word)], self.bits)
        if self.kind == "AWQ":
            digits = digits.view(len(digits), -1, 8)[..., _AWQ_PLACES].flatten(1)
        return digits[:, first - begin * self.per_word : last - begin * self.per_word]


@dataclass
class Packed:
    """A matrix [out, in] of packed numbers; index: the group of each input [in] where they are out of order."""

    name: str
    packing: Packing
    words: TensorEntry
    zeros: TensorEntry
    scales: TensorEntry
    held: Held
    index: Tensor | None = None
    bits: int | None = None
    kind: str = field(init=False)
    path: Path = field(init=False)
    shape: tuple[int, ...] = field(init=False)
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Raise CheckpointError where the parts do not fit each other."""
        out, width = self.shape = self.packing.shape(self.words)
        self.kind, self.path = self.packing.kind, self.words.path
        self.size_bytes = sum(part.size_bytes for part in (self.words, self.zeros, self.scales))
        self.group = self.packing.group or max(1, width)
        num_groups = -(-width // self.group)
        wanted = {self.zeros.name: (num_groups, out // self.packing.per_word), self.scales.name: (num_groups, out)}
        for part, dtypes in ((self.zeros, {"I32"}), (self.scales, _SCALES)):
            if part.dtype not in dtypes or part.shape != wanted[part.name] or out % self.packing.per_word:
                raise CheckpointError(
                    f"{part.path}: tensor {part.name!r} has dtype {part.dtype} and shape {list(part.shape)}, wanted are"
                    f" {' or '.join(sorted(dtypes))} and {list(wanted[part.name])} for {self.packing.bits} bits in"
                    f" groups of {self.group}; config.json's quantization_config does not fit the file"
                )

    def decide_bits(self, read: Read) -> None:
        """Set `bits`: 4 where all zeros are 8 as told, else 8; None where groups are not of 32 inputs in order."""
        in_order = self.index is None and not self.group % GROUP and not self.shape[1] % GROUP
        if self.packing.bits != 4 or not in_order or self.scales.dtype != "F16":
            return
        self.bits = 8
        if self.packing.symmetric:
            zeros = self.packing.zeros(whole(self.zeros, read), 0, self.shape[0])
            self.bits = 4 if bool((zeros == _MIDDLE).all()) else 8

    def rows(self, first: int, last: int, read: Read) -> Rows:
        """Return rows [first, last) in fp32, which is exact.

        They lie all over the file, so it is read whole when the first of them are asked for.
        """
        parts = (self.words, self.zeros, self.scales)
        words, zeros, scales = self.held.tensors(self.name, lambda: tuple(whole(part, read) for part in parts))
        numbers = self.packing.numbers(words, first, last).float()
        scales = scales[:, first:last].T.contiguous()
        numbers -= self._by_input(self.packing.zeros(zeros, first, last).T.float())
        numbers *= self._by_input(scales.float())
        if self.bits is None:
            return Rows(numbers)
        return Rows(numbers, scales.repeat_interleave(self.group // GROUP, 1)[:, : self.shape[1] // GROUP])

    def _by_input(self, by_group: Tensor) -> Tensor:
        """Return by_group [R, groups] as [R, in]."""
        if self.index is None:
            return by_group.repeat_interleave(self.group, 1)[:, : self.shape[1]]
        return by_group[:, self.index]


def group_index(entry: TensorEntry, width: int, group: int | None, read: Read) -> Tensor | None:
    """Return g_idx [width], or None where inputs are in the order of their groups; raise CheckpointError."""
    if entry.dtype != "I32" or entry.shape != (width,):
        raise CheckpointError(
            f"{entry.path}: tensor {entry.name!r} has dtype {entry.dtype} and shape {list(entry.shape)},"
            f" wanted are I32 and {[width]}; fetch the file again"
        )
    index, size = whole(entry, read).long(), group or max(1, width)
    if torch.equal(index, torch.arange(width) // size):
        return None
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < -(-width // size):
        raise CheckpointError(
            f"{entry.path}: tensor {entry.name!r} names group {int(index.max())} or {int(index.min())},"
            f" there are {-(-width // size)}; fetch the file again"
        )
    return index


def _digits(words: Tensor, bits: int) -> Tensor:
    """Return the numbers [R, n * 32 / bits] in words [R, n], the lowest bits first, as uint8."""
    raw = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return raw if bits == 8 else torch.stack((raw & 15, raw >> 4), -1).flatten(-2)
