"""Let tokens attend to their sequences over the blocks of the KV cache, in place."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from ollampi.kernels import native
from ollampi.kernels.attention import Scoring


@dataclass(frozen=True)
class Kept:
    """Keys or values of all layers: vectors [L, slots, K, d] in fp32 or bf16, or in int8 with bf16 scales.

    scales: [L, slots, K], None where there are none.
    """

    vectors: Tensor
    scales: Tensor | None = None


@dataclass(frozen=True)
class Pieces:
    """The tokens of a step in runs of neighbours of one sequence, few enough to be computed together.

    each: int64 [P, 5], of every piece the number of its first token in the step, how many tokens it has, the position
    of the first, where the blocks of its sequence begin in blocks [.] of int64, and how many positions each of its
    tokens sees, 0 for all up to its own.
    """

    each: Tensor
    blocks: Tensor
    num_positions: int  # that all tokens see


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorm of each head of queries and keys before they are turned: weights fp32 [d]."""

    queries: Tensor
    keys: Tensor
    eps: float


_NUMBER, _POINTER = ctypes.c_int64, ctypes.c_void_p


class _Kept(ctypes.Structure):
    _fields_ = [("vectors", _POINTER), ("scales", _POINTER)]


class _Mix(ctypes.Structure):  # as kernels/cpu/mix.h says
    _fields_ = [
        ("keys", _Kept),
        ("values", _Kept),
        ("kept", _NUMBER),
        ("num_slots", _NUMBER),
        ("block_size", _NUMBER),
        ("num_heads", _NUMBER),
        ("num_kv_heads", _NUMBER),
        ("head_dim", _NUMBER),
        ("first_heads", _POINTER),
        ("num_tokens", _NUMBER),
        ("num_turned", _NUMBER),
        ("cos", _POINTER),
        ("sin", _POINTER),
        ("slots", _POINTER),
        ("num_pieces", _NUMBER),
        ("num_positions", _NUMBER),
        ("pieces", _POINTER),
        ("blocks", _POINTER),
        ("window", _NUMBER),
        ("scale", ctypes.c_float),
        ("cap", ctypes.c_float),
        ("query_norm", _POINTER),
        ("key_norm", _POINTER),
        ("eps", ctypes.c_float),
    ]


def piece_tokens(most_heads: int, level: int | None = None) -> int:
    """Return the most tokens of a piece where most_heads query heads look at one KV head; 0 without a library."""
    library = native.library()
    if library is None:
        return 0
    return max(1, int(library.ollampi_rows_at_once(native.level() if level is None else level)) // most_heads)


class PagedAttention:
    """Attention of one step over a cache with blocks of block_size slots; needs the native library, on the CPU.

    first_heads: int64 [K + 1], of each KV head the first query head that looks at it, and their number at the end.
    cos, sin: fp32 [T, r/2] of the tokens' positions, which turn the first r numbers of a head; slots: int64 [T], where
    their keys and values go; scoring: which positions a token sees, and how. level: of native.levels(); None for the
    best.
    """

    def __init__(
        self,
        keys: Kept,
        values: Kept,
        block_size: int,
        first_heads: Tensor,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        pieces: Pieces,
        scoring: Scoring,
        level: int | None = None,
    ) -> None:
        _, num_slots, num_kv_heads, head_dim = keys.vectors.shape
        self._held = keys, values, first_heads, cos, sin, slots, pieces  # while their addresses are in use
        self._width = int(first_heads[-1]) * head_dim
        self._level = native.level() if level is None else level
        self._mix = _Mix(
            keys=_pointers(keys),
            values=_pointers(values),
            kept=native.number_of(keys.vectors.dtype),
            num_slots=num_slots,
            block_size=block_size,
            num_heads=int(first_heads[-1]),
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            first_heads=first_heads.data_ptr(),
            num_tokens=len(slots),
            num_turned=cos.shape[1],
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            slots=slots.data_ptr(),
            num_pieces=len(pieces.each),
            num_positions=pieces.num_positions,
            pieces=pieces.each.data_ptr(),
            blocks=pieces.blocks.data_ptr(),
            window=scoring.window or 0,
            scale=scoring.scale,
            cap=scoring.cap or 0.0,
        )
        self._address = ctypes.addressof(self._mix)

    def mix(self, layer: int, qkv: Tensor, norms: HeadNorms | None = None) -> Tensor:
        """Return what the tokens see of one layer as [T, H * d] in fp32.

        qkv [T, (H + 2K) d] in fp32 or bf16, contiguous: queries, keys and values of all tokens. Queries are rotated in
        place, behind their norm where there is one; rotated keys, and values, are kept in the tokens' slots first.
        """
        if norms is not None:
            self._mix.query_norm, self._mix.key_norm = norms.queries.data_ptr(), norms.keys.data_ptr()
            self._mix.eps = norms.eps
        out = torch.empty(qkv.shape[0], self._width)
        type_ = native.number_of(qkv.dtype)
        native.call("mix", self._level, self._address, layer, qkv.data_ptr(), type_, out.data_ptr())
        return out


def _pointers(kept: Kept) -> _Kept:
    return _Kept(kept.vectors.data_ptr(), None if kept.scales is None else kept.scales.data_ptr())
