"""Choose the next token of every sequence of a step from its logits; rank 0 only.

The order is llama.cpp's: bias, penalties, top_k, typical_p, top_p, min_p, temperature. Randomness is keyed by the seed
and the position, and no sum runs over more than a sequence's own candidates, in order: the choice depends on nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ollampi.kernels.draw import draw, drawn_places, heated
from ollampi.kernels.top_tokens import TopTokens, top_tokens
from ollampi.mpiruntime.philox import chance
from ollampi.mpiruntime.request import Sampling, TokenLogprob

Logits = NDArray[np.float32]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MAX_NARROW = 256  # candidates up to which sequences are sampled together


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
    scores = adjusted(logits, picks)
    count = candidates(picks, scores.shape[1])
    top = top_tokens(scores, count)
    if any(pick.allowed is not None for pick in picks):
        scores = _masked(scores, picks)
        top = top_tokens(scores, count)._replace(finite=top.finite)
    return choose(top, picks, scores.__getitem__)


def candidates(picks: list[Pick], vocab_size: int) -> int:
    """Return how many of the likeliest tokens `choose` needs to know."""
    narrow = (pick.sampling.top_k for pick in picks if pick.sampling.draws and is_narrow(pick.sampling))
    return min(max(narrow, default=1), vocab_size)


def choose(top: TopTokens, picks: list[Pick], scores_of: Callable[[int], Logits]) -> list[int | None]:
    """Return the next token of each row from its likeliest ones; None for a row that is not finite.

    scores_of: returns all scores [V] of a row, behind biases, penalties and mask; asked where the likeliest do not do.
    """
    drawn = [i for i, pick in enumerate(picks) if pick.sampling.draws]
    narrow = [i for i in drawn if is_narrow(picks[i].sampling)]
    tokens = top.tokens[:, 0].copy()
    if narrow:
        drawing = [picks[i] for i in narrow]
        options = np.array([(*p.sampling.limits, chance(p.seed, p.position)) for p in drawing])
        tokens[narrow] = top.tokens[narrow, draw(top.scores[narrow], options)]
    if len(narrow) < len(drawn):
        for i in set(drawn).difference(narrow):
            if top.finite[i]:
                tokens[i] = _draw_wide(scores_of(i).astype(np.float64), picks[i])
    return [token if ok else None for token, ok in zip(tokens.tolist(), top.finite.tolist(), strict=True)]


def describe(logits: Logits, token: int, count: int) -> TokenLogprob:
    """Return the log-probability of `token` under plain logits [V], with the `count` most likely tokens."""
    scores = logits.astype(np.float64)
    top = scores.max()
    logprobs = scores - (top + np.log(np.exp(scores - top).sum()))
    best = np.argsort(-logprobs, kind="stable")[:count]
    return TokenLogprob(token, float(logprobs[token]), [(int(t), float(logprobs[t])) for t in best])


def adjusted(logits: Logits, picks: list[Pick]) -> Logits:
    """Return logits [B, V] with biases, then the penalties on the tokens in each row's window; rows may overflow."""
    if not any(pick.sampling.adjusts for pick in picks):
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
    seen, repeat, off = penalties(picks, scores.shape[1])
    flat = scores.reshape(-1)
    found = flat[seen].astype(np.float64)
    flat[seen] = np.where(found > 0, found / repeat, found * repeat) - off[0] - off[1]


def penalties(picks: list[Pick], vocab_size: int) -> tuple[Ints, Floats, Floats]:
    """Return what the penalties act on: places [P] in flattened scores [B, V], each with its repeat penalty [P] and
    what is taken off in turn [2, P]."""
    places: list[int] = []
    for i, pick in enumerate(picks):
        places += [i * vocab_size + token for token in _window(pick)]
    seen, times = np.unique(np.array(places, dtype=np.int64), return_counts=True)
    repeat, presence, frequency = np.array(
        [(p.sampling.repeat_penalty, p.sampling.presence_penalty, p.sampling.frequency_penalty) for p in picks]
    )[seen // vocab_size].T
    return seen, repeat, np.stack([times * frequency, presence])


def _window(pick: Pick) -> list[int]:
    """Return the tokens that the penalties act on."""
    s, tokens = pick.sampling, pick.tokens
    if not s.penalises:
        return []
    return tokens if s.repeat_last_n < 0 else tokens[len(tokens) - min(s.repeat_last_n, len(tokens)) :]


def is_narrow(sampling: Sampling) -> bool:
    """Return whether few candidates are left after top_k, which comes first."""
    return 0 < sampling.top_k <= _MAX_NARROW and sampling.typical_p >= 1


def _draw_wide(scores: Floats, pick: Pick) -> int:
    """Return a token for scores [V], whatever the options."""
    candidates = _candidates(scores, pick.sampling)
    below = scores[candidates] - scores[candidates].max()
    weights = heated(below, np.array(pick.sampling.temperature))
    return int(candidates[drawn_places(weights[None], np.array([chance(pick.seed, pick.position)]))[0]])


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
