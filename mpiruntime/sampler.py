"""Choose the next token of every sequence of a step from its logits; rank 0 only.

The order is llama.cpp's: bias, penalties, top_k, typical_p, top_p, min_p, temperature. Randomness is keyed by the seed
and the position, and no sum runs over more than a sequence's own candidates, in order: the choice depends on nothing
else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ollampi.mpiruntime.philox import chance
from ollampi.mpiruntime.request import Sampling, TokenLogprob

Logits = NDArray[np.float32]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MAX_NARROW = 256  # candidates up to which sequences are sampled together
_PIECE = 32
_LOWEST = np.finfo(np.float32).min
_TOKEN = np.int64(0xFFFFFFFF)
_LAST_KEY = np.iinfo(np.int64).max


class Pick(NamedTuple):
    """One choice: how, after which tokens, which random number decides, and among which tokens.

    allowed: a bit for each token, the lowest first; None allows all.
    """

    sampling: Sampling
    tokens: list[int]
    seed: int
    position: int
    allowed: bytes | None = None


def sample(logits: Logits, picks: list[Pick]) -> list[int | None]:
    """Return the next token for each row of logits [B, V]; None for one with values, or penalties, beyond fp32."""
    scores = _adjusted(logits, picks)
    tokens = scores.argmax(axis=1)  # of a NaN where there is one
    finite = np.isfinite(scores[np.arange(len(scores)), tokens]) & (scores.min(axis=1) > -np.inf)
    if any(pick.allowed is not None for pick in picks):
        scores = _masked(scores, picks)
        tokens = scores.argmax(axis=1)
    drawn = [i for i, pick in enumerate(picks) if pick.sampling.temperature > 0 and finite[i]]
    if drawn:
        chances = np.array([chance(picks[i].seed, picks[i].position) for i in drawn])
        is_narrow = [_is_narrow(picks[i].sampling) for i in drawn]
        rows = [i for i, narrow in zip(drawn, is_narrow, strict=True) if narrow]
        if rows:
            several = scores if len(rows) == len(scores) else scores[rows]
            tokens[rows] = _draw_narrow(several, [picks[i].sampling for i in rows], chances[is_narrow])
        for i, narrow, at in zip(drawn, is_narrow, chances.tolist(), strict=True):
            if not narrow:
                tokens[i] = _draw_wide(scores[i].astype(np.float64), picks[i].sampling, at)
    return [token if ok else None for token, ok in zip(tokens.tolist(), finite.tolist(), strict=True)]


def describe(logits: Logits, token: int, count: int) -> TokenLogprob:
    """Return the log-probability of `token` under plain logits [V], with the `count` most likely tokens."""
    scores = logits.astype(np.float64)
    top = scores.max()
    logprobs = scores - (top + np.log(np.exp(scores - top).sum()))
    best = np.argsort(-logprobs, kind="stable")[:count]
    return TokenLogprob(token, float(logprobs[token]), [(int(t), float(logprobs[t])) for t in best])


def _adjusted(logits: Logits, picks: list[Pick]) -> Logits:
    """Return logits [B, V] with biases, then the penalties on the tokens in each row's window; rows may overflow."""
    if not any(pick.sampling.penalises or pick.sampling.logit_bias for pick in picks):
        return logits
    scores = logits.copy()
    with np.errstate(invalid="ignore", over="ignore"):
        for row, pick in zip(scores, picks, strict=True):
            for token, bias in pick.sampling.logit_bias:
                row[token] += np.float32(bias)
        _penalise(scores, picks)
    return scores


def _masked(scores: Logits, picks: list[Pick]) -> Logits:
    """Return scores [B, V] that are -inf where a row's token is not allowed; each row has one that is."""
    masked = scores.copy()
    for row, pick in zip(masked, picks, strict=True):
        if pick.allowed is not None:
            bits = np.unpackbits(np.frombuffer(pick.allowed, np.uint8), count=len(row), bitorder="little")
            row[bits == 0] = -np.inf
    return masked


def _penalise(scores: Logits, picks: list[Pick]) -> None:
    """Take the repeat, presence and frequency penalties off scores [B, V] in place."""
    places: list[int] = []
    for i, pick in enumerate(picks):
        places += [i * scores.shape[1] + token for token in _window(pick)]
    if not places:
        return
    seen, times = np.unique(np.array(places, dtype=np.int64), return_counts=True)
    row = seen // scores.shape[1]
    repeat, presence, frequency = np.array(
        [(p.sampling.repeat_penalty, p.sampling.presence_penalty, p.sampling.frequency_penalty) for p in picks]
    )[row].T
    flat = scores.reshape(-1)
    found = flat[seen].astype(np.float64)
    flat[seen] = np.where(found > 0, found / repeat, found * repeat) - times * frequency - presence


def _window(pick: Pick) -> list[int]:
    """Return the tokens that the penalties act on."""
    s, tokens = pick.sampling, pick.tokens
    if not s.penalises:
        return []
    return tokens if s.repeat_last_n < 0 else tokens[len(tokens) - min(s.repeat_last_n, len(tokens)) :]


def _is_narrow(sampling: Sampling) -> bool:
    """Return whether few candidates are left after top_k, which comes first."""
    return 0 < sampling.top_k <= _MAX_NARROW and sampling.typical_p >= 1


def _draw_narrow(scores: Logits, samplings: list[Sampling], chances: Floats) -> Ints:
    """Return a token for each row of scores [B, V], whose top_k is small and typical_p off."""
    options = np.array([(s.top_k, s.top_p if s.top_p < 1 else np.inf, s.min_p, s.temperature) for s in samplings])
    top_k, top_p, min_p, temperature = options.T[:, :, None]
    order, values = _likeliest(scores, int(top_k.max()))
    below = values - values[:, :1]
    kept = np.arange(values.shape[1]) < top_k
    weights = np.where(kept, np.exp(below), 0.0)
    reached = np.cumsum(weights, axis=1)
    kept[:, 1:] &= reached[:, :-1] < top_p * reached[:, -1:]  # the token that reaches top_p stays in
    kept &= weights >= min_p * weights[:, :1]
    picked = _drawn(np.where(kept, _heated(below, temperature), 0.0), chances)
    return np.take_along_axis(order, picked[:, None], axis=1)[:, 0]


def _likeliest(scores: Logits, count: int) -> tuple[Ints, Floats]:
    """Return the `count` likeliest tokens of each row of scores [B, V] with their scores, equal ones by number.

    A row without so many finite scores ends with scores of -inf. Few scores reach the bound that they are chosen by:
    the count-th largest of the maxima of V / 32 parts of the row.
    """
    num_rows, size = scores.shape
    pieces = scores[:, : size - size % _PIECE]
    while pieces.shape[1] > size // _PIECE:
        pieces = np.maximum(pieces[:, : pieces.shape[1] // 2], pieces[:, pieces.shape[1] // 2 :])
    bound = np.full((num_rows, 1), _LOWEST)
    if pieces.shape[1] >= count:
        np.maximum(bound, np.partition(pieces, -count, axis=1)[:, [-count]], out=bound)
    found = np.flatnonzero(scores >= bound)
    ends = np.searchsorted(found, np.arange(1, num_rows + 1) * size)
    counts = np.diff(ends, prepend=0)
    rows = np.repeat(np.arange(num_rows), counts)
    keys = np.full((num_rows, int(counts.max())), _LAST_KEY)
    keys[rows, np.arange(len(found)) - (ends - counts)[rows]] = _keys(scores.reshape(-1)[found], found - rows * size)
    keys.sort(axis=1)
    keys = keys[:, :count]
    return keys & _TOKEN, np.where(keys == _LAST_KEY, -np.inf, _scores(keys))


def _keys(scores: Logits, tokens: Ints) -> Ints:
    """Return integers that sort as the scores [K], highest first, and then as the tokens [K]; all below _LAST_KEY."""
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0, its equal
    return ~_ordered(bits) << 32 | tokens


def _scores(keys: Ints) -> Floats:
    """Return the scores that `_keys` was given."""
    return _ordered(~(keys >> 32)).astype(np.int32).view(np.float32).astype(np.float64)


def _ordered(bits: Ints) -> Ints:
    """Return the bits of fp32 numbers as integers in the same order, and such integers as bits again."""
    ordered: Ints = bits ^ (bits >> 31 & 0x7FFFFFFF)
    return ordered


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
