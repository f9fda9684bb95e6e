"""The gated MLP of one decoder layer over this rank's columns."""

from __future__ import annotations

import torch
from torch import Tensor

from ollampi.kernels.groups import GROUP
from ollampi.kernels.linear import Matrix
from ollampi.mpiruntime.checkpoint import Weights
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.layers import RowParallel
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard


class MLP:
    """down(silu(gate(x)) * up(x)); gate and up are column parallel, down is row parallel."""

    def __init__(self, weights: Weights, config: ModelConfig, shard: Shard, comm: Communicator) -> None:
        self.arithmetic = weights.arithmetic
        part = shard.of(config.mlp_width, unit=GROUP)
        shape = (config.mlp_width, config.width)
        names = ("gate_proj", "up_proj")
        self.gate_up = weights.stacked_rows([(f"{name}.weight", shape, part) for name in names])
        self.bias = (
            torch.cat([weights.vector(f"{name}.bias", config.mlp_width, part) for name in names])
            if config.mlp_bias
            else None
        )
        self.down = RowParallel(weights / "down_proj", shape[::-1], part, config.mlp_bias, comm)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the MLP of x [T, D] as [T, D] in fp32; collective."""
        return self.down(self.arithmetic.gated(x, self.gate_up, self.bias))

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.gate_up, *([] if self.bias is None else [self.bias]), *self.down.tensors()]
