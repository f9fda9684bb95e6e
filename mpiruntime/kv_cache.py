"""Keep the keys and values of the KV heads of one rank."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ollampi.kernels.cache_codec import decode, encode
from ollampi.kernels.device_attention import LayerCache
from ollampi.kernels.paged_attention import Kept

Shape = tuple[int, int, int, int]
CPU = torch.device("cpu")


class Slots(Protocol):
    """One vector for each layer, slot and KV head: [L, slots, K, d].

    Memory is taken when a slot is first written, not before; until then it reads as zeros.
    """

    size_bytes: int

    @property
    def kept(self) -> Kept:
        """Return the tensors that hold them."""

    def write(self, layer: int, slots: Tensor, x: Tensor) -> None:
        """Store x [T, K, d] in slots [T] of a layer."""

    def read(self, layer: int, slots: slice | Tensor) -> Tensor:
        """Return the vectors [S, K, d] of S slots of a layer in the dtype of the model."""


class PlainSlots:
    """Vectors in a floating type; where it is the model's, a slice of slots is read in place."""

    def __init__(self, shape: Shape, kept: torch.dtype, dtype: torch.dtype, device: torch.device) -> None:
        self.vectors = _zeros(shape, kept, device)
        self.dtype = dtype
        self.size_bytes = self.vectors.nbytes

    @property
    def kept(self) -> Kept:
        """Return the vectors."""
        return Kept(self.vectors)

    def write(self, layer: int, slots: Tensor, x: Tensor) -> None:
        """Store x [T, K, d]."""
        self.vectors[layer].index_copy_(0, slots, x.to(self.vectors.dtype))

    def read(self, layer: int, slots: slice | Tensor) -> Tensor:
        """Return the vectors [S, K, d]."""
        return _take(self.vectors[layer], slots).to(self.dtype)


class CodedSlots:
    """Vectors in 8 bits as kernels.cache_codec defines them, decoded when they are read."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.codes = _zeros(shape, torch.int8, device)
        self.scales = _zeros(shape[:-1], torch.bfloat16, device)
        self.dtype = dtype
        self.size_bytes = self.codes.nbytes + self.scales.nbytes

    @property
    def kept(self) -> Kept:
        """Return codes and scales."""
        return Kept(self.codes, self.scales)

    def write(self, layer: int, slots: Tensor, x: Tensor) -> None:
        """Store x [T, K, d]."""
        codes, scales = encode(x)
        self.codes[layer].index_copy_(0, slots, codes)
        self.scales[layer].index_copy_(0, slots, scales)

    def read(self, layer: int, slots: slice | Tensor) -> Tensor:
        """Return the vectors [S, K, d]."""
        return decode(_take(self.codes[layer], slots), _take(self.scales[layer], slots), self.dtype)


class KVCache:
    """Keys and values of all layers in blocks of `block_size` slots.

    The same number of blocks on every rank; the KV heads are those of this rank. dtype: of the model; kept: float32,
    bfloat16 or int8. spare: there is one block more, `spare_block`, which is nobody's: what fills up a recorded step
    goes there. On a GPU all memory is taken at once.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        kept: str,
        device: torch.device = CPU,
        spare: bool = False,
    ) -> None:
        self.spare_block = num_blocks
        shape = (num_layers, (num_blocks + spare) * block_size, num_kv_heads, head_dim)
        self.block_size = block_size
        self.num_slots = shape[1]
        self.keys = _slots(shape, dtype, kept, device)
        self.values = _slots(shape, dtype, kept, device)
        self.slot_bytes = num_kv_heads * head_dim * dtype.itemsize  # of the keys that a layer reads for one position
        self._last_slot = torch.tensor(-1 if device.type == "cpu" else self.num_slots - 1)

    @cached_property
    def layers(self) -> list[LayerCache]:
        """Return the tensors of each layer, as kernels.device_attention wants them."""
        keys, values = self.keys.kept, self.values.kept
        return [
            LayerCache(of_layer(keys, layer), of_layer(values, layer), self.block_size)
            for layer in range(len(keys.vectors))
        ]

    @property
    def size_bytes(self) -> int:
        """Return the bytes that the cache holds on this rank once all of it has been used."""
        return self.keys.size_bytes + self.values.size_bytes

    @property
    def taken_bytes(self) -> int:
        """Return the bytes that the cache has taken at most: blocks are handed out lowest first."""
        return self.size_bytes * (int(self._last_slot) + 1) // self.num_slots

    def in_block(self, block: int) -> Iterator[Tensor]:
        """Yield the tensors [L, S, K, ...] that hold a block of S slots on this rank."""
        slots = slice(block * self.block_size, (block + 1) * self.block_size)
        for kept in (self.keys.kept, self.values.kept):
            yield kept.vectors[:, slots]
            if kept.scales is not None:
                yield kept.scales[:, slots]

    def note(self, slots: Tensor) -> None:
        """Count slots [T] as taken; to be called once before all layers write them."""
        self._last_slot = torch.maximum(self._last_slot, slots.max())

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k, v [T, K, d] in slots [T] of a layer."""
        self.keys.write(layer, slots, k)
        self.values.write(layer, slots, v)

    def read(self, layer: int, slots: slice | Tensor, num_sequences: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [N, S, K, d] of the slots of N sequences in the dtype of the model."""
        keys, values = self.keys.read(layer, slots), self.values.read(layer, slots)
        shape = (num_sequences, -1, *keys.shape[1:])
        return keys.view(shape), values.view(shape)


def of_layer(kept: Kept, layer: int) -> Kept:
    """Return the vectors of one layer."""
    return Kept(kept.vectors[layer], None if kept.scales is None else kept.scales[layer])


def _slots(shape: Shape, dtype: torch.dtype, kept: str, device: torch.device) -> Slots:
    """Return empty slots that keep vectors as `kept` says."""
    if kept == "int8":
        return CodedSlots(shape, dtype, device)
    return PlainSlots(shape, getattr(torch, kept), dtype, device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros [*shape]; on the CPU in pages that the kernel hands out when they are touched."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def _take(x: Tensor, slots: slice | Tensor) -> Tensor:
    """Return the rows [S, ...] of x; a view where slots is a slice."""
    return x[slots] if isinstance(slots, slice) else x.index_select(0, slots)
