"""The MLP of one decoder layer over this rank's columns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels.groups import GROUP
from ollampi.kernels.linear import Matrix
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.layers import RowParallel
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.weights import Weights


class MLP:
    """down(f(gate(x)) * up(x)); gate and up are column parallel, down is row parallel."""

    def __init__(self, weights: Weights, config: ModelConfig, shard: Shard, comm: Communicator) -> None:
        self.arithmetic = weights.arithmetic
        self.activation = config.activation
        size, names = config.mlp_width, config.names
        part = shard.of(size, unit=GROUP)
        if config.fused:
            cuts = [("gate_up_proj", 2 * size, range(first + part.start, first + part.stop)) for first in (0, size)]
        else:
            cuts = [(name, size, part) for name in (names.gate, names.up)]
        self.gate_up = weights.stacked_rows([(f"{name}.weight", (rows, config.width), own) for name, rows, own in cuts])
        self.bias = (
            torch.cat([weights.vector(f"{name}.bias", rows, own) for name, rows, own in cuts])
            if config.mlp_bias
            else None
        )
        self.down = RowParallel(weights / names.down, (config.width, size), part, config.mlp_bias, comm)

    def __call__(self, x: Tensor) -> Tensor:
        """Return this rank's part of the MLP of x [T, D] as [T, D]; collective."""
        return self.down(self.arithmetic.gated(x, self.gate_up, self.bias, self.activation))

    def summed(self, total: Tensor) -> Tensor:
        """Return the MLP [T, D] in fp32 of the sum of all parts, which it may change."""
        return self.down.summed(total)

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.gate_up, *([] if self.bias is None else [self.bias]), *self.down.tensors()]


class PlainMLP:
    """down(act(up(x))) with biases, of encoders and Phi; up is column parallel, down is row parallel."""

    def __init__(self, weights: Weights, config: ModelConfig, shard: Shard, comm: Communicator) -> None:
        self.arithmetic = weights.arithmetic
        self.activation = config.activation
        size, names = config.mlp_width, config.names
        part = shard.of(size, unit=GROUP)
        self.up = weights.rows(f"{names.up}.weight", (size, config.width), part)
        self.bias = weights.vector(f"{names.up}.bias", size, part)
        self.down = RowParallel(weights / names.down, (config.width, size), part, True, comm)

    def __call__(self, x: Tensor) -> Tensor:
        """Return this rank's part of the MLP of x [T, D] as [T, D]; collective."""
        found = self.arithmetic.linear(x, self.up, self.bias)
        if self.activation == "silu":
            return self.down(F.silu(found))
        return self.down(F.gelu(found, approximate="tanh" if self.activation == "gelu_tanh" else "none"))

    def summed(self, total: Tensor) -> Tensor:
        """Return the MLP [T, D] in fp32 of the sum of all parts, which it may change."""
        return self.down.summed(total)

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.up, self.bias, *self.down.tensors()]
