"""Say where the matrices of a rank's layers lie in runs of bytes, and which layers are read again in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ollampi.kernels.groups import GROUP, ROWS
from ollampi.kernels.linear import Matrix
from ollampi.kernels.pages import PAGE
from ollampi.kernels.quantised import Quantised, stored_bytes

_ALIGNED = 64  # where a matrix begins: a line of a CPU's cache


@dataclass(frozen=True)
class Place:
    """A matrix [num_rows, width] of a layer: of `bits` bits, None for plain numbers of `dtype`.

    exact: with scales in fp16, as its file has them; name: of the pieces of tensors that it is made of.
    """

    name: str
    num_rows: int
    width: int
    bits: int | None
    exact: bool
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Return the memory of the matrix."""
        if self.bits is None:
            return self.num_rows * self.width * self.dtype.itemsize
        return stored_bytes(self.num_rows, self.width, self.bits)

    def within(self, buffer: Tensor) -> Matrix:
        """Return the matrix whose bytes are the first of a buffer [n] of uint8."""
        if self.bits is None:
            return buffer[: self.size_bytes].view(self.dtype).view(self.num_rows, self.width)
        panels, groups = -(-self.num_rows // ROWS), -(-self.width // GROUP)
        end = panels * groups * 64 * self.bits
        scales = buffer[end : self.size_bytes].view(torch.float16 if self.exact else torch.bfloat16)
        weights = buffer[:end].view(panels, groups, 64 * self.bits)
        return Quantised(self.bits, self.num_rows, self.width, weights, scales.view(panels, groups, ROWS), self.dtype)


Layout = Sequence[Sequence[Place]]  # of each layer its matrices, in the order in which they are made


def begins(run: Sequence[Place]) -> list[int]:
    """Return where in a run its matrices begin, and where the last one ends, aligned too."""
    found = [0]
    for place in run:
        found.append(found[-1] + -(-place.size_bytes // _ALIGNED) * _ALIGNED)
    return found


def run_bytes(run: Sequence[Place]) -> int:
    """Return the bytes of a run, whole pages."""
    return -(-begins(run)[-1] // PAGE) * PAGE


@dataclass(frozen=True)
class Schedule:
    """Which layers are read again in every step, and into which buffer: the one of place p into p modulo num_buffers.

    layers: in the order in which they are computed.
    """

    layers: list[int]
    num_buffers: int

    def next(self, place: int) -> int:
        """Return the place of the layer that takes the buffer of a place behind it, maybe in the next step."""
        later = place + self.num_buffers
        return later if later < len(self.layers) else place % self.num_buffers

    def stays(self, place: int) -> bool:
        """Return whether a buffer has one layer only, which is read once."""
        return self.next(place) == place

    def held_bytes(self, runs: Sequence[int]) -> int:
        """Return the memory of all layers, whose runs have these bytes, with the buffers."""
        streamed = set(self.layers)
        return sum(n for i, n in enumerate(runs) if i not in streamed) + self.num_buffers * self.buffer_bytes(runs)

    def buffer_bytes(self, runs: Sequence[int]) -> int:
        """Return the memory of one buffer: the largest run that goes through any."""
        return max((runs[i] for i in self.layers), default=0)

    def step_bytes(self, runs: Sequence[int]) -> int:
        """Return what a step reads."""
        return sum(runs[i] for place, i in enumerate(self.layers) if not self.stays(place))


def schedule(num_layers: int, num_streamed: int, prefetch_factor: int) -> Schedule:
    """Return which of the layers are streamed: evenly spread, so that reading goes on while others are computed."""
    layers = [i for i in range(num_layers) if i * num_streamed // num_layers != (i + 1) * num_streamed // num_layers]
    return Schedule(layers, min(prefetch_factor + 1, len(layers)))
