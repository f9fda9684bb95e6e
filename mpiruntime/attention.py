"""Attention of one decoder layer over this rank's heads."""

from __future__ import annotations

import torch
from torch import Tensor

from ollampi.kernels.linear import Matrix
from ollampi.mpiruntime.checkpoint import Weights
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.layers import RowParallel
from ollampi.mpiruntime.mixing import Heads, Mixing
from ollampi.mpiruntime.model_config import ModelConfig


class Attention:
    """Query, key and value projections cut by heads (column parallel), output projection likewise (row parallel)."""

    def __init__(self, weights: Weights, config: ModelConfig, heads: Heads, comm: Communicator, layer: int) -> None:
        d, width = config.head_dim, config.width
        self.arithmetic = weights.arithmetic
        self.layer = layer
        q_rows = range(heads.query.start * d, heads.query.stop * d)
        kv_rows = range(heads.kv.start * d, heads.kv.stop * d)
        q_size, kv_size = config.num_heads * d, config.num_kv_heads * d
        cuts = [("q_proj", q_size, q_rows), ("k_proj", kv_size, kv_rows), ("v_proj", kv_size, kv_rows)]
        self.qkv = weights.stacked_rows([(f"{name}.weight", (size, width), rows) for name, size, rows in cuts])
        self.bias = (
            torch.cat([weights.vector(f"{name}.bias", size, rows) for name, size, rows in cuts])
            if config.attention_bias
            else None
        )
        self.output = RowParallel(weights / "o_proj", (width, q_size), q_rows, config.attention_bias, comm)

    def __call__(self, x: Tensor, mixing: Mixing) -> Tensor:
        """Return the layer's mix for x [T, D] as [T, D] in fp32; collective. Stores new keys and values."""
        return self.output(mixing(self.layer, self.arithmetic.linear(x, self.qkv, self.bias)))

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.qkv, *([] if self.bias is None else [self.bias]), *self.output.tensors()]
