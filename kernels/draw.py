"""Draw one of the likeliest tokens of each row, with a random number that is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ollampi.kernels.native import address, library

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def draw(scores: NDArray[np.float32], options: Floats) -> Ints:
    """Return the place that is drawn in each row of scores [B, K], the largest of a row first.

    options [B, 5] are top_k, top_p, min_p, temperature and a chance in [0, 1). The first top_k places count; of them as
    many as hold top_p of the weight; of them those with min_p of the first one's weight. One of these is drawn with
    weights exp(score / temperature): the one on which the chance falls when they lie side by side, in order, on [0, 1).
    What is drawn in a row whose first score is not finite means nothing.
    """
    native = library()
    if native is None:
        return draw_numpy(scores, options)
    scores, options = np.ascontiguousarray(scores, np.float32), np.ascontiguousarray(options, np.float64)
    num_rows, count = scores.shape
    drawn, scratch = np.empty(num_rows, np.int64), np.empty(count)
    native.ollampi_draw(address(scores), num_rows, count, address(options), address(scratch), address(drawn))
    return drawn


def draw_numpy(scores: NDArray[np.float32], options: Floats) -> Ints:
    """Return the same as `draw`, by NumPy; where a chance falls within rounding of a border, its neighbour."""
    top_k, top_p, min_p, temperature, chances = options.T[:, :, None]
    values = scores.astype(np.float64)
    with np.errstate(invalid="ignore"):  # rows that are not finite mean nothing
        below = values - values[:, :1]
    kept = np.arange(values.shape[1]) < top_k
    weights = np.where(kept, np.exp(below), 0.0)
    reached = np.cumsum(weights, axis=1)
    kept[:, 1:] &= reached[:, :-1] < top_p * reached[:, -1:]  # the token that reaches top_p stays in
    kept[:, 1:] &= (weights >= min_p)[:, 1:]
    return drawn_places(np.where(kept, heated(below, temperature), 0.0), chances[:, 0])


def heated(below: Floats, temperature: Floats) -> Floats:
    """Return exp(below / temperature); a tiny temperature leaves the likeliest alone, which is right."""
    with np.errstate(over="ignore", under="ignore"):
        weights: Floats = np.exp(below / temperature)
    return weights


def drawn_places(weights: Floats, chances: Floats) -> Ints:
    """Return for each row of weights [B, K] the place that its chance in [0, 1) falls on; weights 0 are never drawn."""
    edges = np.cumsum(weights, axis=1)
    place = (edges <= (chances * edges[:, -1])[:, None]).sum(axis=1)
    last = weights.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)  # rounding must not lead beyond it
    places: Ints = np.minimum(place, last)
    return places
