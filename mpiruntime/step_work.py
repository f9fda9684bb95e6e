"""Say what a step of a model is for the rank that has most to do, from its config and the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ollampi.kernels.groups import GROUP
from ollampi.mpiruntime.cost_model import FEW_TOKENS, Work
from ollampi.mpiruntime.memory import BITS, ITEM_BYTES, cache_bytes
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.source import Source
from ollampi.mpiruntime.synchronization import num_sums

_PRODUCT = 2  # an addition and a multiplication
_GATED = 3  # matrices of an expert


@dataclass(frozen=True)
class _Weights:
    """The weights of a rank's layers, those of experts apart, and the bytes of one of them; head: of the output.

    rows: of the matrices in the layers.
    """

    layers: float
    experts: float
    head: float
    each_bytes: float
    rows: int


@dataclass(frozen=True, eq=False)
class ModelWork:
    """A model as it is loaded; fields as in a Load, sources: the tensors of the checkpoint where there is one.

    few: the most tokens that native kernels multiply by its weights (kernels.choice); None: as on most machines, all
    by quantised weights, FEW_TOKENS by others.
    """

    config: ModelConfig
    dtype: str
    quantize: str = "none"
    cache_dtype: str = "auto"
    spread: bool = False
    points: str = "all"
    deterministic: bool = False
    sources: Mapping[str, Source] | None = None
    few: float | None = None
    _counted: dict[int, _Weights] = field(default_factory=dict, init=False, repr=False)

    def decode(self, shards: int, rows: int = 1, position: int = 0) -> Work:
        """Return a step that adds a token to each of `rows` answers, all of `position` tokens."""
        return self._of(shards, rows, rows if self.config.has_head else 0, rows * position, rows * position)

    def prefill(self, shards: int, tokens: int, position: int = 0) -> Work:
        """Return the step of a prompt's piece of so many tokens behind `position` others."""
        seen = tokens * position + tokens * (tokens + 1) // 2
        return self._of(shards, tokens, int(self.config.has_head), position, seen)

    @property
    def _most_native(self) -> float:
        """Return the most tokens that native kernels multiply."""
        if self.few is not None:
            return self.few
        return math.inf if self.quantize in BITS else FEW_TOKENS

    def _of(self, shards: int, tokens: int, rows: int, cached: int, seen: int) -> Work:
        """Return a step; cached: positions of the cache that are read; seen: pairs of a token and one it looks at."""
        config, held = self.config, self._weights(shards)
        busiest = Shard(shards - 1, shards)  # the last rank has the larger part of all that is uneven
        heads, _ = busiest.heads(config.num_heads, config.num_kv_heads)
        used, read = 1.0, 1.0  # parts of the experts that a token is computed by, and that a step reads
        if config.experts is not None:
            used = config.experts.per_token / config.experts.count
            read = 1 - (1 - used) ** tokens
        head = held.head * bool(rows)
        kept = self.dtype if self.cache_dtype == "auto" else self.cache_dtype
        cache = cache_bytes(config, busiest, cached, kept)
        attention = 2 * _PRODUCT * seen * len(heads) * config.head_dim * config.num_layers
        products = tokens * (held.layers + used * held.experts) + rows * head
        return Work(
            read_bytes=(held.layers + read * held.experts + head) * held.each_bytes + cache,
            flops=_PRODUCT * products + attention,
            tokens=tokens,
            rows=rows,
            layers=config.num_layers,
            sums=num_sums(config, self.points, self.deterministic),
            sum_values=config.width,
            gather_bytes=rows * config.vocab_size * ITEM_BYTES["float32"],
            native=tokens <= self._most_native,
            weight_rows=held.rows * (held.layers + read * held.experts) / (held.layers + held.experts),
        )

    def _weights(self, shards: int) -> _Weights:
        """Return the weights of the busiest of so many ranks."""
        if shards not in self._counted:
            self._counted[shards] = self._count(shards)
        return self._counted[shards]

    def _count(self, shards: int) -> _Weights:
        """Count the weights of the busiest of so many ranks."""
        config, busiest = self.config, Shard(shards - 1, shards)
        size = shard_size(config, busiest, self.dtype, self.quantize, self.spread, self.sources)
        places = [place for run in size.layout for place in run]
        numbers = sum(place.num_rows * place.width for place in places)
        experts = 0.0
        if (mixed := config.experts) is not None:
            own = len(busiest.of(mixed.count)) if self.spread else mixed.count
            columns = mixed.width if self.spread else len(busiest.of(mixed.width, unit=GROUP))
            experts = float(_GATED * config.width * columns * own * config.num_layers)
        head = len(busiest.of(config.vocab_size)) * config.width if config.has_head else 0
        each = sum(place.size_bytes for place in places) / numbers
        return _Weights(numbers - experts, experts, head, each, sum(place.num_rows for place in places))
