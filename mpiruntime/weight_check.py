"""Find weights that are no longer what was loaded, and kernels that multiply them otherwise than at first.

A model is looked at in pieces of some MiB. The first look at a piece keeps two marks of it, every later one compares:

    its bytes, as whole numbers, added up modulo 2^64      any bit that flipped changes it
    its product with a fixed vector, by the layers' way    a kernel or a processor that computes otherwise changes it
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ollampi.kernels.groups import ROWS
from ollampi.kernels.linear import Matrix
from ollampi.kernels.quantised import Quantised
from ollampi.mpiruntime.arithmetic import Arithmetic
from ollampi.mpiruntime.decoder import Decoder

PIECE_BYTES = 4 << 20  # some caches hold it: the product need not fetch it again


@dataclass(frozen=True)
class Piece:
    """Some rows of a matrix, or a vector; part: what of the model it belongs to, for people."""

    part: str
    matrix: Matrix
    arithmetic: Arithmetic


@dataclass(frozen=True)
class _Marks:
    """What a piece was like; product is None where two products in a row had not the same bits."""

    total: int
    product: int | None


class WeightCheck:
    """The pieces of all models of one rank, looked at in turn; used by its main thread."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[Piece]] = {}
        self._marks: dict[int, list[_Marks]] = {}
        self._faults: dict[tuple[int, int], str] = {}
        self._at = (-1, 0)  # model and piece to be looked at next

    def look(self, models: Mapping[int, Decoder], budget_s: float) -> list[str]:
        """Return what is wrong with the weights of this rank, after a look at as much as the time allows.

        models: by their numbers; at least one piece is looked at, beside those that were wrong before.
        """
        for number, decoder in models.items():
            if number not in self._pieces:
                self._pieces[number], self._marks[number] = list(pieces_of(decoder)), []
        until = time.perf_counter() + budget_s
        for number, at in list(self._faults):
            self._look_at(number, at)
        left = sum(len(pieces) for pieces in self._pieces.values())
        while left > 0:
            self._look_at(*self._next())
            left = left - 1 if time.perf_counter() < until else 0
        return sorted(set(self._faults.values()))

    @property
    def is_learning(self) -> bool:
        """Return whether there are pieces that nobody has looked at yet."""
        return any(len(self._marks[number]) < len(pieces) for number, pieces in self._pieces.items())

    def forget(self, number: int) -> None:
        """Let go of a model, whose memory is not free before."""
        self._pieces.pop(number, None)
        self._marks.pop(number, None)
        self._faults = {at: fault for at, fault in self._faults.items() if at[0] != number}

    def _next(self) -> tuple[int, int]:
        """Return the model and piece to look at: first those that nobody has seen, else the next in turn."""
        for number, pieces in self._pieces.items():
            if len(self._marks[number]) < len(pieces):
                return number, len(self._marks[number])
        number, at = self._at
        if number not in self._pieces or at >= len(self._pieces[number]):
            later = sorted(other for other in self._pieces if other > number)
            number, at = later[0] if later else min(self._pieces), 0
        self._at = number, at + 1
        return number, at

    def _look_at(self, number: int, at: int) -> None:
        """Mark a piece, or compare it with its marks."""
        piece, marks = self._pieces[number][at], self._marks[number]
        total = _total(piece.matrix)
        if at == len(marks):
            product = _product(piece)
            marks.append(_Marks(total, product if product == _product(piece) else None))
            return
        self._faults.pop((number, at), None)
        if total != marks[at].total:
            self._faults[number, at] = f"the weights of {piece.part} are not what was loaded: bad memory?"
        elif (product := marks[at].product) is not None and _differs(piece, product):
            self._faults[number, at] = f"{piece.part} is multiplied otherwise than at first: a bad processor?"


def pieces_of(decoder: Decoder) -> Iterator[Piece]:
    """Yield the pieces of the weights that stay in this rank's memory, those of each part in turn."""
    for part, tensors in decoder.lasting():
        for tensor in tensors:
            for rows in _cut(tensor):
                yield Piece(part, rows, decoder.arithmetic)


def _cut(matrix: Matrix) -> Iterator[Matrix]:
    """Yield runs of rows of a matrix, or a vector as it is."""
    count = matrix.shape[0]
    step = max(1, count * PIECE_BYTES // max(1, matrix.nbytes)) // ROWS * ROWS or ROWS
    for first in range(0, count, step):
        last = min(count, first + step)
        if isinstance(matrix, Quantised):
            panels = slice(first // ROWS, -(-last // ROWS))
            weights, scales = matrix.weights[panels], matrix.scales[panels]
            yield replace(matrix, num_rows=last - first, weights=weights, scales=scales)
        else:
            yield matrix[first:last]


def _total(matrix: Matrix) -> int:
    """Return the bytes of a matrix added up as whole numbers of 64 bits, modulo 2^64."""
    tensors = [matrix.weights, matrix.scales] if isinstance(matrix, Quantised) else [matrix]
    return sum(int(byte_sum(tensor)) for tensor in tensors) % (1 << 64)


def byte_sum(tensor: Tensor) -> Tensor:
    """Return the sum [] of a tensor's bytes, as words of 64 bits where they are whole and aligned."""
    raw = tensor.contiguous().view(-1).view(torch.uint8)
    if len(raw) % 8 == 0 and raw.storage_offset() % 8 == 0:
        raw = raw.view(torch.int64)
    return raw.sum(dtype=torch.int64)


def _product(piece: Piece) -> int | None:
    """Return a mark of the product of a piece with a fixed vector; None where layers make no such product."""
    matrix = piece.matrix
    if len(matrix.shape) != 2 or not matrix.shape[1] or (isinstance(matrix, Tensor) and matrix.dtype == torch.float64):
        return None
    device = (matrix.weights if isinstance(matrix, Quantised) else matrix).device
    x = (torch.arange(matrix.shape[1], device=device) * 37 % 64 - 31.5)[None] / 32
    return zlib.crc32(piece.arithmetic.linear(x, matrix).cpu().view(torch.uint8).numpy().tobytes())


def _differs(piece: Piece, product: int) -> bool:
    """Return whether a piece's product is another one, twice: a single slip is nothing that a user would see again."""
    return _product(piece) != product and _product(piece) != product
