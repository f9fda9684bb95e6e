"""The mixture of experts in the place of a layer's MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ollampi.kernels.groups import GROUP
from ollampi.kernels.linear import Matrix
from ollampi.mpiruntime.model_config import Experts, ModelConfig
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.weights import Weights


@dataclass(frozen=True)
class _Expert:
    """This rank's part of one gated MLP, or all of it."""

    gate_up: Matrix
    down: Matrix


class Mixture:
    """The likeliest experts of each token, weighted by a router that every rank has whole: Shazeer et al., 2017.

    Of every expert each rank has its columns, or, where they are spread, each rank has some experts whole. Either way
    what they made of all tokens is to be summed over ranks. x must have the same bits on every rank. The router
    computes in fp64, so that ranks which add up in another order, with more threads, choose the same experts.
    """

    def __init__(self, weights: Weights, config: ModelConfig, shard: Shard, spread: bool) -> None:
        assert config.experts is not None
        self.arithmetic = weights.arithmetic
        self.activation = config.activation
        self.experts: Experts = config.experts
        names, count, size = config.names, self.experts.count, self.experts.width
        self.router = weights.plain_rows(f"{names.router}.weight", (count, config.width)).double()
        part = range(size) if spread else shard.of(size, unit=GROUP)
        self.own: dict[int, _Expert] = {}
        own = shard.of(count) if spread else range(count)
        for number in range(count):
            of_expert = weights / names.expert.format(number)
            if number not in own:
                of_expert.stand_by([f"{n}.weight" for n in (names.expert_gate, names.expert_up, names.expert_down)])
                continue
            rows = [(f"{name}.weight", (size, config.width), part) for name in (names.expert_gate, names.expert_up)]
            gate_up = of_expert.stacked_rows(rows)  # in the order in which the others stand by
            down = of_expert.columns(f"{names.expert_down}.weight", (config.width, size), part)
            self.own[number] = _Expert(gate_up, down)

    def __call__(self, x: Tensor) -> Tensor:
        """Return this rank's part of what the experts make of x [T, D] as [T, D] in fp32; not collective."""
        shares, chosen = self._routed(x)
        out = torch.zeros_like(x)
        for number in sorted(self.own.keys() & set(chosen.flatten().tolist())):
            tokens, places = (chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, tokens, self._of_expert(x[tokens], self.own[number]) * shares[tokens, places, None])
        return out

    def summed(self, total: Tensor) -> Tensor:
        """Return what the experts make [T, D] in fp32: the sum of all parts as it is."""
        return total

    def _routed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shares in fp32 and the numbers [T, per_token] of each token's experts."""
        shares, chosen = (x.double() @ self.router.T).softmax(-1).topk(self.experts.per_token)
        return (shares / shares.sum(-1, keepdim=True) if self.experts.normalised else shares).float(), chosen

    def _of_expert(self, x: Tensor, expert: _Expert) -> Tensor:
        """Return this rank's part of an expert's sum for x [T, D] as [T, D] in fp32."""
        middle = self.arithmetic.gated(x, expert.gate_up, None, self.activation)
        return self.arithmetic.linear(middle, expert.down).float()

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.router, *(t for expert in self.own.values() for t in (expert.gate_up, expert.down))]
