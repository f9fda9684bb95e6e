"""Fill a weight matrix row by row while it is read, as plain numbers or quantised."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ollampi.kernels import pages, quantised
from ollampi.kernels.groups import GROUP, ROWS
from ollampi.kernels.linear import Matrix
from ollampi.mpiruntime.source import Rows

M_co = TypeVar("M_co", bound=Matrix, covariant=True)


class Filling(Protocol[M_co]):
    """A matrix that is being read."""

    def add(self, rows: Rows) -> None:
        """Take the next rows; raise NotFinite, or NotExact, where they cannot be quantised."""

    def matrix(self) -> M_co:
        """Return the matrix; all of its rows must have been added."""


class PlainFilling:
    """A matrix [num_rows, width] of plain numbers; pinned: in memory that a GPU reads by itself."""

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype, pinned: bool = False) -> None:
        shape = num_rows, width
        self._out = torch.empty(shape, dtype=dtype, pin_memory=True) if pinned else pages.empty(shape, dtype)
        self._done = 0

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        self.room(len(rows.values)).copy_(rows.values)

    def room(self, num_rows: int) -> Tensor:
        """Return the next rows [num_rows, width] in place, to be written by the caller; they count as added."""
        self._done += num_rows
        return self._out[self._done - num_rows : self._done]

    def matrix(self) -> Tensor:
        """Return the matrix."""
        return self._out


class QuantisedFilling:
    """A matrix of 8 or 4 bits; dtype is that of products with it."""

    def __init__(self, num_rows: int, width: int, bits: int, dtype: torch.dtype) -> None:
        self._out = quantised.empty(num_rows, width, bits, dtype)
        self._waiting: Tensor | None = None  # rows that do not fill a panel yet
        self._done = 0

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        values = rows.values
        if self._waiting is not None:
            values = torch.cat([self._waiting, values])
        last = self._done + len(values) == self._out.num_rows
        ready = len(values) if last else len(values) - len(values) % ROWS
        if ready:
            quantised.set_rows(self._out, self._done, values[:ready])
        self._done += ready
        self._waiting = values[ready:].clone() if ready < len(values) else None
        if self._waiting is not None:  # the next rows must not be blamed for these
            quantised.check_finite(self._waiting)

    def matrix(self) -> quantised.Quantised:
        """Return the matrix."""
        return self._out


class ExactFilling:
    """A matrix of 8 or 4 bits whose rows come with their scales in groups, which are kept; it holds them exactly."""

    def __init__(self, num_rows: int, width: int, bits: int, dtype: torch.dtype) -> None:
        self._out = quantised.empty(num_rows, width, bits, dtype, torch.float16)
        self._waiting = quantised.empty(ROWS, width, bits, dtype, torch.float16)
        self._values, self._scales = torch.empty(0, width), torch.empty(0, width // GROUP, dtype=torch.float16)
        self._done = 0

    def add(self, rows: Rows) -> None:
        """Take the next rows; raise NotFinite, or NotExact where they are no whole numbers of these scales."""
        if rows.scales is None:
            raise ValueError("these rows have no scales of groups; use QuantisedFilling")
        values, scales = rows.values, rows.scales
        if len(self._values):
            values, scales = torch.cat([self._values, values]), torch.cat([self._scales, scales])
        last = self._done + len(values) == self._out.num_rows
        ready = len(values) if last else len(values) - len(values) % ROWS
        if ready:
            quantised.set_codes(self._out, self._done, values[:ready], scales[:ready])
        self._done += ready
        self._values, self._scales = values[ready:].clone(), scales[ready:].clone()
        if ready < len(values):  # the next rows must not be blamed for these
            quantised.set_codes(self._waiting, 0, self._values, self._scales)

    def matrix(self) -> quantised.Quantised:
        """Return the matrix."""
        return self._out
