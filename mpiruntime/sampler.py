"""Choose the next token of every sequence of a step from its logits; rank 0 only.

The order is llama.cpp's: penalties, top_k, typical_p, top_p, min_p, temperature. Randomness is keyed by the seed and
the position, and no sum runs over more than a sequence's own candidates, in order: the choice depends on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ollampi.mpiruntime.philox import uniforms
from ollampi.mpiruntime.request import Sampling, TokenLogprob

Logits = NDArray[np.float32]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MAX_NARROW = 256  # candidates up to which sequences are sampled together
_PIECE = 32


@dataclass(frozen=True)
class Pick:
    """One choice: how, after which tokens, and which random number decides."""

    sampling: Sampling
    tokens: list[int]
    seed: int
    position: int


def sample(logits: Logits, picks: list[Pick]) -> list[int | None]:
    """Return the next token for each row of logits [B, V]; None for one with values, or penalties, beyond fp32."""
    scores = _penalised(logits, picks)
    finite = _finite(scores)
    tokens = scores.argmax(axis=1)
    drawn = [i for i, pick in enumerate(picks) if pick.sampling.temperature > 0 and finite[i]]
    if drawn:
        chances = uniforms([picks[i].seed for i in drawn], [picks[i].position for i in drawn])
        is_narrow = [_is_narrow(picks[i].sampling) for i in drawn]
        rows = [i for i, narrow in zip(drawn, is_narrow, strict=True) if narrow]
        if rows:
            several = scores if len(rows) == len(scores) else scores[rows]
            tokens[rows] = _draw_narrow(several, [picks[i].sampling for i in rows], chances[is_narrow])
        for i, narrow, chance in zip(drawn, is_narrow, chances, strict=True):
            if not narrow:
                tokens[i] = _draw_wide(scores[i].astype(np.float64), picks[i].sampling, chance)
    return [int(token) if ok else None for token, ok in zip(tokens, finite, strict=True)]


def describe(logits: Logits, token: int, count: int) -> TokenLogprob:
    """Return the log-probability of `token` under plain logits [V], with the `count` most likely tokens."""
    scores = logits.astype(np.float64)
    top = scores.max()
    logprobs = scores - (top + np.log(np.exp(scores - top).sum()))
    best = np.argsort(-logprobs, kind="stable")[:count]
    return TokenLogprob(token, float(logprobs[token]), [(int(t), float(logprobs[t])) for t in best])


def _finite(logits: Logits) -> NDArray[np.bool_]:
    """Return for each row whether all its values are finite; a sum tells it quickly, but large ones can overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite: NDArray[np.bool_] = np.isfinite(logits.sum(axis=1))
    for i in np.flatnonzero(~finite):
        finite[i] = np.isfinite(logits[i]).all()
    return finite


def _penalised(logits: Logits, picks: list[Pick]) -> Logits:
    """Return logits [B, V] with the repeat, presence and frequency penalties on the tokens in each row's window."""
    places: list[int] = []
    for i, pick in enumerate(picks):
        places += [i * logits.shape[1] + token for token in _window(pick)]
    if not places:
        return logits
    seen, times = np.unique(np.array(places, dtype=np.int64), return_counts=True)
    row = seen // logits.shape[1]
    repeat, presence, frequency = np.array(
        [(p.sampling.repeat_penalty, p.sampling.presence_penalty, p.sampling.frequency_penalty) for p in picks]
    )[row].T
    scores = logits.copy()
    flat = scores.reshape(-1)
    found = flat[seen].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are dropped later
        flat[seen] = np.where(found > 0, found / repeat, found * repeat) - times * frequency - presence
    return scores


def _window(pick: Pick) -> list[int]:
    """Return the tokens that the penalties act on."""
    s, tokens = pick.sampling, pick.tokens
    if s.repeat_penalty == 1 and s.presence_penalty == 0 and s.frequency_penalty == 0:
        return []
    return tokens if s.repeat_last_n < 0 else tokens[len(tokens) - min(s.repeat_last_n, len(tokens)) :]


def _is_narrow(sampling: Sampling) -> bool:
    """Return whether few candidates are left after top_k, which comes first."""
    return 0 < sampling.top_k <= _MAX_NARROW and sampling.typical_p >= 1


def _draw_narrow(scores: Logits, samplings: list[Sampling], chances: Floats) -> Ints:
    """Return a token for each row of scores [B, V], whose top_k is small and typical_p off."""
    top_k = np.array([[s.top_k] for s in samplings])
    order, values = _likeliest(scores, int(top_k.max()))
    below = values - values[:, :1]
    kept = np.arange(values.shape[1]) < top_k
    weights = np.where(kept, np.exp(below), 0.0)
    reached = np.cumsum(weights, axis=1)
    total = reached[:, -1:]
    top_p = np.array([[s.top_p] if s.top_p < 1 else [np.inf] for s in samplings])
    kept[:, 1:] &= reached[:, :-1] / total < top_p  # the token that reaches top_p stays in
    min_p = np.array([[s.min_p] for s in samplings])
    kept &= weights >= min_p * weights[:, :1]
    temperature = np.array([[s.temperature] for s in samplings])
    picked = _drawn(np.where(kept, _heated(below, temperature), 0.0), chances)
    return np.take_along_axis(order, picked[:, None], axis=1)[:, 0]


def _likeliest(scores: Logits, count: int) -> tuple[Ints, Floats]:
    """Return the `count` likeliest tokens of each row of scores [B, V] with their scores, equal ones by number.

    Each row has at least `count` of them; there may be more columns, less likely tokens and at last scores of -inf. Few
    scores reach the bound that they are chosen by: the count-th largest of the maxima of V / 32 parts of the row.
    """
    num_rows, size = scores.shape
    pieces = scores[:, : size - size % _PIECE].reshape(num_rows, _PIECE, -1).max(axis=1)
    if pieces.shape[1] >= count:
        bound = np.partition(pieces, pieces.shape[1] - count, axis=1)[:, [pieces.shape[1] - count]]
    else:
        bound = np.full((num_rows, 1), -np.inf, dtype=np.float32)
    rows, tokens = np.divmod(np.flatnonzero(scores >= bound), size)
    first = np.searchsorted(rows, np.arange(num_rows))
    column = np.arange(len(rows)) - first[rows]
    shape = (num_rows, int(column.max()) + 1)
    order, values = np.zeros(shape, dtype=np.int64), np.full(shape, -np.inf)
    order[rows, column], values[rows, column] = tokens, scores[rows, tokens]
    by_score = np.argsort(-values, axis=1, kind="stable")  # equal ones stay in order of their numbers
    return np.take_along_axis(order, by_score, axis=1), np.take_along_axis(values, by_score, axis=1)


def _draw_wide(scores: Floats, sampling: Sampling, chance: float) -> int:
    """Return a token for scores [V], whatever the options."""
    candidates = _candidates(scores, sampling)
    below = scores[candidates] - scores[candidates].max()
    weights = _heated(below, np.array(sampling.temperature))
    return int(candidates[_drawn(weights[None], np.array([chance]))[0]])


def _heated(below: Floats, temperature: Floats) -> Floats:
    """Return exp(below / temperature); a tiny temperature leaves the likeliest alone, which is right."""
    with np.errstate(over="ignore", under="ignore"):
        weights: Floats = np.exp(below / temperature)
    return weights


def _drawn(weights: Floats, chances: Floats) -> Ints:
    """Return for each row of weights [B, K] the index that its chance in [0, 1) falls on; weights 0 are never drawn."""
    edges = np.cumsum(weights, axis=1)
    index = (edges <= (chances * edges[:, -1])[:, None]).sum(axis=1)
    last = weights.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)  # rounding must not lead beyond it
    picked: Ints = np.minimum(index, last)
    return picked


def _candidates(scores: Floats, sampling: Sampling) -> Ints:
    """Return the tokens that top_k, typical_p, top_p and min_p leave, likeliest first (equal ones by number)."""
    order = _top_k(scores, sampling.top_k)
    if sampling.typical_p < 1:
        order = _typical(scores, order, sampling.typical_p)
    weights = np.exp(scores[order] - scores[order].max())
    if sampling.top_p < 1:
        reached = np.cumsum(weights)
        keep = 1 + int((reached[:-1] / reached[-1] < sampling.top_p).sum())  # the token that reaches top_p stays in
        order, weights = order[:keep], weights[:keep]
    kept: Ints = order[weights >= sampling.min_p * weights.max()]
    return kept


def _top_k(scores: Floats, top_k: int) -> Ints:
    """Return the top_k likeliest tokens in order; all of them where top_k is off."""
    if 0 < top_k < len(scores):
        kth = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        chosen = np.flatnonzero(scores >= kth)  # ties at the border come in by number, then the cut below decides
    else:
        chosen, top_k = np.arange(len(scores)), len(scores)
    return chosen[np.argsort(-scores[chosen], kind="stable")][:top_k]


def _typical(scores: Floats, order: Ints, typical_p: float) -> Ints:
    """Return the tokens whose surprise is nearest to the entropy, until they hold typical_p of the mass.

    Meister et al., "Locally Typical Sampling", 2022.
    """
    weights = np.exp(scores[order] - scores[order].max())
    probabilities = weights / np.cumsum(weights)[-1]
    surprise = -np.log(np.maximum(probabilities, 1e-300))
    by_distance = np.argsort(np.abs(surprise - (probabilities * surprise).sum()), kind="stable")
    keep = int(np.searchsorted(np.cumsum(probabilities[by_distance]), typical_p)) + 1
    return order[np.sort(by_distance[:keep])]
