"""Fill a weight matrix row by row while it is read, as plain numbers or quantised."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ollampi.kernels import quantised
from ollampi.kernels.groups import ROWS
from ollampi.kernels.linear import Matrix

M_co = TypeVar("M_co", bound=Matrix, covariant=True)


class Filling(Protocol[M_co]):
    """A matrix that is being read."""

    def add(self, rows: Tensor) -> None:
        """Take the next rows [R, width], of any dtype; raise NotFinite where they cannot be quantised."""

    def matrix(self) -> M_co:
        """Return the matrix; all of its rows must have been added."""


class PlainFilling:
    """A matrix [num_rows, width] of plain numbers."""

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype) -> None:
        self._out = torch.empty((num_rows, width), dtype=dtype)
        self._done = 0

    def add(self, rows: Tensor) -> None:
        """Take the next rows."""
        self._out[self._done : self._done + len(rows)].copy_(rows)
        self._done += len(rows)

    def matrix(self) -> Tensor:
        """Return the matrix."""
        return self._out


class QuantisedFilling:
    """A matrix of 8 or 4 bits; dtype is that of products with it."""

    def __init__(self, num_rows: int, width: int, bits: int, dtype: torch.dtype) -> None:
        self._out = quantised.empty(num_rows, width, bits, dtype)
        self._waiting: Tensor | None = None  # rows that do not fill a panel yet
        self._done = 0

    def add(self, rows: Tensor) -> None:
        """Take the next rows."""
        if self._waiting is not None:
            rows = torch.cat([self._waiting, rows])
        last = self._done + len(rows) == self._out.num_rows
        ready = len(rows) if last else len(rows) - len(rows) % ROWS
        if ready:
            quantised.set_rows(self._out, self._done, rows[:ready])
        self._done += ready
        self._waiting = rows[ready:].clone() if ready < len(rows) else None
        if self._waiting is not None:  # the next rows must not be blamed for these
            quantised.check_finite(self._waiting)

    def matrix(self) -> quantised.Quantised:
        """Return the matrix."""
        return self._out
