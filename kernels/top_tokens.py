"""Find the largest scores of each row: what sampling from the top_k likeliest tokens begins with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ollampi.kernels.native import address, library

Scores = NDArray[np.float32]
Ints = NDArray[np.int64]

_PIECE = 32
_DEPTH, _BLOCK = 16, 512  # as in kernels/cpu/top_tokens.c
_LOWEST = np.finfo(np.float32).min
_TOKEN = np.int64(0xFFFFFFFF)
_LAST_KEY = np.iinfo(np.int64).max


class TopTokens(NamedTuple):
    """The likeliest tokens [B, K] of each row, first the likeliest, equal ones by number, and their scores [B, K].

    A row with fewer finite scores ends with token 0 and -inf. finite [B]: whether all scores of the row are finite; the
    rest of a row where they are not means nothing.
    """

    tokens: Ints
    scores: Scores
    finite: NDArray[np.bool_]


def top_tokens(scores: Scores, count: int) -> TopTokens:
    """Return the `count` likeliest tokens of each row of scores [B, V]; count is at least 1 and at most V."""
    native = library()
    if native is None:
        return top_tokens_numpy(scores, count)
    scores = np.ascontiguousarray(scores, np.float32)
    num_rows, size = scores.shape
    found = TopTokens(
        np.empty((num_rows, count), np.int64),
        np.empty((num_rows, count), np.float32),
        np.empty(num_rows, np.bool_),
    )
    largest, maxima = np.empty(count, np.uint64), np.empty(size // _DEPTH + _BLOCK // _DEPTH, np.int32)
    native.ollampi_top_tokens(address(scores), num_rows, size, count, *map(address, (largest, maxima, *found)))
    return found


def top_tokens_numpy(scores: Scores, count: int) -> TopTokens:
    """Return the same as `top_tokens`, by NumPy.

    Few scores reach the bound that they are chosen by: the count-th largest of the maxima of V / 32 parts of the row.
    """
    num_rows, size = scores.shape
    largest = scores.max(axis=1, keepdims=True)  # NaN where there is one
    finite = np.isfinite(largest[:, 0]) & (scores.min(axis=1) > -np.inf)
    pieces = scores[:, : size - size % _PIECE]
    while pieces.shape[1] > size // _PIECE:
        pieces = np.maximum(pieces[:, : pieces.shape[1] // 2], pieces[:, pieces.shape[1] // 2 :])
    bound = largest if count == 1 else np.full((num_rows, 1), _LOWEST)
    if pieces.shape[1] >= count:
        bound = np.maximum(bound, np.partition(pieces, -count, axis=1)[:, [-count]])
    found = np.flatnonzero((scores >= bound) & (scores > -np.inf))
    ends = np.searchsorted(found, np.arange(1, num_rows + 1) * size)
    counts = np.diff(ends, prepend=0)
    rows = np.repeat(np.arange(num_rows), counts)
    keys = np.full((num_rows, max(count, int(counts.max(initial=0)))), _LAST_KEY)
    keys[rows, np.arange(len(found)) - (ends - counts)[rows]] = _keys(scores.reshape(-1)[found], found - rows * size)
    keys.sort(axis=1)
    keys = keys[:, :count]
    missing = keys == _LAST_KEY
    values = np.where(missing, np.float32(-np.inf), _scores(keys))
    return TopTokens(np.where(missing, 0, keys & _TOKEN), values, finite)


def _keys(scores: Scores, tokens: Ints) -> Ints:
    """Return integers that sort as the scores [K], highest first, and then as the tokens [K]; all below _LAST_KEY."""
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0, its equal
    return ~_ordered(bits) << 32 | tokens


def _scores(keys: Ints) -> Scores:
    """Return the scores that `_keys` was given."""
    return _ordered(~(keys >> 32)).astype(np.int32).view(np.float32)


def _ordered(bits: Ints) -> Ints:
    """Return the bits of fp32 numbers as integers in the same order, and such integers as bits again."""
    ordered: Ints = bits ^ (bits >> 31 & 0x7FFFFFFF)
    return ordered
