"""Hold the weights that a rank owns and multiply by them; only a layer knows how it is cut."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels.linear import Matrix, take_rows
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.weights import Weights

_MANY = 32  # tokens, from which on the bytes that repeat take longer than to find them


class Norm:
    """RMSNorm, held whole on every rank."""

    def __init__(self, weights: Weights, width: int, eps: float, offset: float = 0.0) -> None:
        self.arithmetic = weights.arithmetic
        if offset:  # in fp32: the sum has more bits than what it is made of
            self.weight = weights.vector("weight", width, dtype=torch.float32) + offset
        else:
            self.weight = weights.vector("weight", width)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Return the normalised x [T, D] in fp32."""
        return self.arithmetic.rms_norm(x, self.weight, self.eps)

    def summands(self, x: Tensor) -> Tensor:
        """Return the normalised x [T, D] in fp64, to be summed over tokens."""
        return self.arithmetic.summands(self(x), self.weight)

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.weight]


class LayerNorm:
    """LayerNorm with a bias or without, held whole on every rank: Ba et al., 2016."""

    def __init__(self, weights: Weights, width: int, eps: float, bias: bool = True) -> None:
        self.weight = weights.vector("weight", width, dtype=torch.float32)
        self.bias = weights.vector("bias", width, dtype=torch.float32) if bias else None
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Return the normalised x [T, D] in fp32."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


AnyNorm = Norm | LayerNorm


def norm_of(weights: Weights, config: ModelConfig) -> AnyNorm:
    """Return the norm of the model's kind at a place of its width."""
    if config.norm != "rms":
        return LayerNorm(weights, config.width, config.norm_eps, config.norm == "layer")
    return Norm(weights, config.width, config.norm_eps, config.norm_offset)


class RowParallel:
    """A matrix [out, in] cut along its input: each rank multiplies its part, and whoever calls sums the results.

    comm: where ranks agree, if the arithmetic wants it, on what their parts are rounded to.
    """

    def __init__(self, weights: Weights, shape: tuple[int, int], part: range, bias: bool, comm: Communicator) -> None:
        self.arithmetic = weights.arithmetic
        self.width = shape[1]
        self.weight = weights.columns("weight", shape, part)
        self.bias = weights.vector("bias", shape[0]) if bias else None
        self.comm = comm

    def __call__(self, x: Tensor) -> Tensor:
        """Return this rank's part of x @ weight.T as [T, out] for its part of x [T, in]; collective."""
        return self.arithmetic.linear_part(x, self.weight, self.width, self.comm)

    def summed(self, total: Tensor) -> Tensor:
        """Return x @ weight.T + bias as [T, out] in fp32 of the sum of all parts, which it may change."""
        total = self.arithmetic.summed(total)
        return total if self.bias is None else total + self.bias.float()  # once, not once per rank

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class Embedding:
    """The token table [V, D] cut by vocabulary; serves as the output head too where embeddings are tied.

    Logits are scaled where the family says so, and behind a cap c tanh(x / c). comm: where rows are shared.
    """

    def __init__(
        self, weights: Weights, config: ModelConfig, shard: Shard, comm: Communicator, bias: bool = False
    ) -> None:
        self.arithmetic = weights.arithmetic
        self.rows = shard.of(config.vocab_size)
        starts = [other.of(config.vocab_size).start for other in shard.others()[1:]]
        self.bounds = torch.tensor(starts, device=weights.device)
        self.weight = weights.rows("weight", (config.vocab_size, config.width), self.rows)
        self.bias = weights.vector("bias", config.vocab_size, self.rows) if bias else None
        self.scale, self.cap = config.logit_scale, config.logit_cap
        self.comm = comm

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the rows of tokens [T] as [T, D] in fp32; collective. Of many tokens those that repeat travel once."""
        if self.comm.size == 1 or len(tokens) < _MANY or tokens.is_cuda:  # how many differ, a GPU's graph cannot know
            return self._shared(tokens)
        different, places = torch.unique(tokens, return_inverse=True)
        return self._shared(different)[places]

    def _shared(self, tokens: Tensor) -> Tensor:
        """Return the rows of tokens [T] as [T, D] in fp32; collective."""
        owners = torch.bucketize(tokens, self.bounds, right=True)
        return self.comm.share_rows(self._own(tokens), owners)

    def _own(self, tokens: Tensor) -> Tensor:
        """Return rows [T, D] that are those of tokens [T] where this rank has them, as they are kept."""
        if not len(self.rows):
            return take_rows(self.weight, tokens[:0]).new_zeros(len(tokens), self.weight.shape[1])
        return take_rows(self.weight, (tokens - self.rows.start).clamp(0, len(self.rows) - 1))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [B, V of this rank] of x [B, D]."""
        found = self.arithmetic.linear(x, self.weight, self.bias)
        if self.scale != 1:
            found = found.float() * self.scale
        return found if self.cap is None else self.arithmetic.capped(found, self.cap)

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class Places:
    """What an encoder adds to its token vectors: one vector for each position and one for the first type of token."""

    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        width = config.width
        positions = weights.plain_rows("position_embeddings.weight", (config.max_context, width))
        types = weights.plain_rows("token_type_embeddings.weight", (config.num_token_types, width))
        self.table = positions + types[0]
        self.norm = LayerNorm(weights / "LayerNorm", width, config.norm_eps)

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return the sums for x [T, D] at positions [T], normalised."""
        return self.norm(x + self.table[positions])

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.table, *self.norm.tensors()]
