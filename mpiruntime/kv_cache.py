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

    @property
    def slot_bytes(self) -> int:
        """Return the bytes of the keys of one position in one layer."""
        return self.keys[0, 0].numel() * self.keys.element_size()

    def read(self, layer: int, slots: slice | Tensor, num_sequences: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [N, S, K, d] of the slots of N sequences; views where slots is a slice."""
        found = [
            x[layer][slots] if isinstance(slots, slice) else x[layer].index_select(0, slots)
            for x in (self.keys, self.values)
        ]
        shape = (num_sequences, -1, *self.keys.shape[2:])
        return found[0].view(shape), found[1].view(shape)
