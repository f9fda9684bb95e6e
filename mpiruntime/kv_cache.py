"""Keep the keys and values of the KV heads of one rank."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of all layers in blocks of `block_size` slots: two tensors [L, slots, K, d].

    The same number of blocks on every rank; the KV heads are those of this rank.
    """

    def __init__(
        self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        shape = (num_layers, num_blocks * block_size, num_kv_heads, head_dim)
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the cache holds on this rank."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k, v [T, K, d] in slots [T] of a layer."""
        self.keys[layer].index_copy_(0, slots, k.to(self.keys.dtype))
        self.values[layer].index_copy_(0, slots, v.to(self.values.dtype))

    def read(self, layer: int, slots: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [S, K, d] of the slots; views where slots is a slice."""
        return self.keys[layer][slots], self.values[layer][slots]
