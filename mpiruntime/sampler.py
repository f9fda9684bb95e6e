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


@dataclass(frozen=True)
class Pick:
    """One choice: how, after which tokens, and which random number decides."""

    sampling: Sampling
    tokens: list[int]
    seed: int
    position: int


def sample(logits: Logits, picks: list[Pick]) -> list[int | None]:
    """Return the next token for each row of logits [B, V], None for a row with values that are not finite."""
    scores = _penalised(logits, picks)
    finite = _finite(logits)
    tokens = scores.argmax(axis=1)
    drawn = [i for i, pick in enumerate(picks) if pick.sampling.temperature > 0 and finite[i]]
    if drawn:
        chances = uniforms([picks[i].seed for i in drawn], [picks[i].position for i in drawn])
        narrow = [n for n, i in enumerate(drawn) if _is_narrow(picks[i].sampling, scores.shape[1])]
        rows = [drawn[n] for n in narrow]
        found, sure = _draw_narrow(scores[rows], [picks[i].sampling for i in rows], chances[narrow])
        tokens[rows] = found
        for n in sorted(set(range(len(drawn))) - {n for n, is_sure in zip(narrow, sure, strict=True) if is_sure}):
            i = drawn[n]
            tokens[i] = _draw_wide(scores[i].astype(np.float64), picks[i].sampling, chances[n])
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


def _is_narrow(sampling: Sampling, vocab_size: int) -> bool:
    """Return whether few candidates are left after top_k, which comes first."""
    return 0 < sampling.top_k <= min(_MAX_NARROW, vocab_size - 2) and sampling.typical_p >= 1


def _draw_narrow(scores: Logits, samplings: list[Sampling], chances: Floats) -> tuple[Ints, list[bool]]:
    """Return a token for each row of scores [B, V], and whether it is sure: equals at the border of top_k are not."""
    if not samplings:
        return np.empty(0, dtype=np.int64), []
    top_k = np.array([s.top_k for s in samplings])
    wanted = int(top_k.max()) + 1  # one more than needed, to see whether it equals the last one needed
    order = np.argpartition(scores, scores.shape[1] - wanted, axis=1)[:, -wanted:]
    order.sort(axis=1)  # so that the stable sort below leaves equals in order of their numbers
    values = np.take_along_axis(scores, order, axis=1).astype(np.float64)
    by_score = np.argsort(-values, axis=1, kind="stable")
    order, values = np.take_along_axis(order, by_score, axis=1), np.take_along_axis(values, by_score, axis=1)
    rows = np.arange(len(samplings))
    sure = values[rows, top_k - 1] > values[rows, top_k]
    below = values - values[:, :1]
    kept = np.arange(wanted) < top_k[:, None]
    weights = np.where(kept, np.exp(below), 0.0)
    reached = np.cumsum(weights, axis=1)
    total = reached[:, -1:]
    top_p = np.array([[s.top_p] if s.top_p < 1 else [np.inf] for s in samplings])
    kept[:, 1:] &= reached[:, :-1] / total < top_p  # the token that reaches top_p stays in
    min_p = np.array([[s.min_p] for s in samplings])
    kept &= weights >= min_p * weights[:, :1]
    temperature = np.array([[s.temperature] for s in samplings])
    picked = _drawn(np.where(kept, _heated(below, temperature), 0.0), chances)
    return order[rows, picked], sure.tolist()


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
