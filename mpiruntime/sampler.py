"""Choose the next token of a sequence from its logits; rank 0 only.

The order is llama.cpp's: penalties, top_k, typical_p, top_p, min_p, temperature. Randomness is a counter-based
generator keyed by the seed and the position, so the choice depends on nothing else.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from ollampi.mpiruntime.errors import RequestError
from ollampi.mpiruntime.request import Sampling, TokenLogprob

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def sample(logits: NDArray[np.float32], sampling: Sampling, tokens: list[int], seed: int, position: int) -> int:
    """Return the next token for logits [V] after `tokens`; raise RequestError where the logits are not finite."""
    if not np.isfinite(logits).all():
        raise RequestError("the model computed logits that are not finite; check the checkpoint or use dtype=float32")
    scores = _penalise(logits.astype(np.float64), sampling, tokens)
    if sampling.temperature == 0:
        return int(scores.argmax())
    candidates = _candidates(scores, sampling)
    below = scores[candidates] - scores[candidates].max()
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the likeliest to -inf, which is right
        probabilities = _softmax(below / sampling.temperature)
    return int(candidates[_draw(probabilities, seed, position)])


def describe(logits: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
    """Return the log-probability of `token` under plain logits [V], with the `count` most likely tokens."""
    scores = logits.astype(np.float64)
    top = scores.max()
    logprobs = scores - (top + np.log(np.exp(scores - top).sum()))
    best = np.argsort(-logprobs, kind="stable")[:count]
    return TokenLogprob(token, float(logprobs[token]), [(int(t), float(logprobs[t])) for t in best])


def uniform(seed: int, position: int) -> float:
    """Return the random number in [0, 1) that belongs to this seed and position.

    Philox 4x64, Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.
    """
    generator = np.random.Generator(np.random.Philox(key=seed & (2**64 - 1), counter=position))
    return float(generator.random())


def _penalise(scores: Floats, sampling: Sampling, tokens: list[int]) -> Floats:
    """Return scores [V] with the repeat, presence and frequency penalties on the tokens in the window applied."""
    window = tokens if sampling.repeat_last_n < 0 else tokens[len(tokens) - min(sampling.repeat_last_n, len(tokens)) :]
    plain = sampling.repeat_penalty == 1 and sampling.presence_penalty == 0 and sampling.frequency_penalty == 0
    if plain or not window:
        return scores
    counts = Counter(window)
    seen = np.fromiter(counts.keys(), dtype=np.int64)
    times = np.fromiter(counts.values(), dtype=np.float64)
    found = scores[seen]
    found = np.where(found > 0, found / sampling.repeat_penalty, found * sampling.repeat_penalty)
    scores[seen] = found - times * sampling.frequency_penalty - sampling.presence_penalty
    return scores


def _candidates(scores: Floats, sampling: Sampling) -> Ints:
    """Return the tokens that top_k, typical_p, top_p and min_p leave, likeliest first (equal ones by number)."""
    order = _top_k(scores, sampling.top_k)
    if sampling.typical_p < 1:
        order = _typical(scores, order, sampling.typical_p)
    probabilities = _softmax(scores[order])
    if sampling.top_p < 1:
        # the token that reaches top_p stays in
        keep = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p)) + 1
        order, probabilities = order[:keep], probabilities[:keep]
    if sampling.min_p > 0:
        order = order[probabilities >= sampling.min_p * probabilities[0]]
    return order


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
    probabilities = _softmax(scores[order])
    surprise = -np.log(np.maximum(probabilities, 1e-300))
    by_distance = np.argsort(np.abs(surprise - (probabilities * surprise).sum()), kind="stable")
    keep = int(np.searchsorted(np.cumsum(probabilities[by_distance]), typical_p)) + 1
    return order[np.sort(by_distance[:keep])]


def _softmax(scores: Floats) -> Floats:
    """Return the probabilities of scores."""
    weights = np.exp(scores - scores.max())
    result: Floats = weights / weights.sum()
    return result


def _draw(probabilities: Floats, seed: int, position: int) -> int:
    """Return an index drawn with the given probabilities."""
    edges = np.cumsum(probabilities)
    return min(int(np.searchsorted(edges, uniform(seed, position) * edges[-1], side="right")), len(edges) - 1)
