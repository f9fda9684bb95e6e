"""Choose next tokens from logits on a GPU: the same ones as the sampler, without moving all logits to the host.

The GPU takes off the penalties and finds the likeliest tokens, both exactly as the CPU does; a few hundred numbers of
each row travel, and are drawn from by the same code. Rows with biases, masks or more candidates travel whole.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ollampi.kernels.top_tokens import TopTokens
from ollampi.mpiruntime.sampler import Logits, Pick, adjusted, candidates, choose, penalties, sample

_TOKEN = 0xFFFFFFFF


def sample_rows(logits: Tensor, picks: list[Pick]) -> list[int | None]:
    """Return what `sampler.sample` returns for logits [B, V], wherever they are."""
    return sample(logits.numpy(), picks) if logits.is_cpu else sample_on_device(logits, picks)


def sample_on_device(logits: Tensor, picks: list[Pick]) -> list[int | None]:
    """Return the next token for each row of logits [B, V]; None for one with values, or penalties, beyond fp32."""
    whole = [i for i, pick in enumerate(picks) if pick.allowed is not None or pick.sampling.logit_bias]
    tokens: list[int | None] = [None] * len(picks)
    if whole:
        found = sample(logits[whole].cpu().numpy(), [picks[i] for i in whole])
        for i, token in zip(whole, found, strict=True):
            tokens[i] = token
    rest = [i for i in range(len(picks)) if i not in set(whole)]
    if rest:
        rows = logits[rest] if whole else logits
        for i, token in zip(rest, _sample_rest(rows, [picks[i] for i in rest]), strict=True):
            tokens[i] = token
    return tokens


def _sample_rest(logits: Tensor, picks: list[Pick]) -> list[int | None]:
    """Return the next tokens of rows that have neither mask nor bias."""
    scores = _penalised(logits, picks) if any(pick.sampling.adjusts for pick in picks) else logits

    def scores_of(i: int) -> Logits:
        """Return the scores [V] of a row, made on the host."""
        scores: Logits = adjusted(logits[i : i + 1].cpu().numpy(), picks[i : i + 1])[0]
        return scores

    return choose(top_on_device(scores, candidates(picks, logits.shape[1])), picks, scores_of)


def _penalised(logits: Tensor, picks: list[Pick]) -> Tensor:
    """Return logits [B, V] without the penalties, by the same operations in fp64 as on the CPU."""
    seen, repeat, off = (torch.from_numpy(x).to(logits.device) for x in penalties(picks, logits.shape[1]))
    scores = logits.clone()
    flat = scores.view(-1)
    found = flat[seen].double()
    flat[seen] = (torch.where(found > 0, found / repeat, found * repeat) - off[0] - off[1]).float()
    return scores


def top_on_device(scores: Tensor, count: int) -> TopTokens:
    """Return the `count` likeliest tokens of each row of scores [B, V] in fp32, as kernels.top_tokens does.

    Scores and tokens are joined to integers that no two places share, so that equal scores come by number.
    """
    bits = (scores + 0.0).view(torch.int32).long()  # -0.0 becomes 0.0, its equal
    tokens = torch.arange(scores.shape[1], device=scores.device)
    keys = torch.topk((~_ordered(bits) << 32) | tokens, count, largest=False, sorted=True).values
    found = _ordered(~(keys >> 32)).int().view(torch.float32)
    finite = torch.isfinite(scores).all(1)
    host = [x.cpu().numpy() for x in (keys & _TOKEN, found, finite)]
    return TopTokens(np.asarray(host[0]), np.asarray(host[1]), np.asarray(host[2]))


def _ordered(bits: Tensor) -> Tensor:
    """Return the bits [...] of fp32 numbers as integers in the same order, and such integers as bits again."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
