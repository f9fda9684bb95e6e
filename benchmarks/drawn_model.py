"""Models of any shape with random weights that are made where they are used, for speed alone."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ollampi.kernels.groups import GROUP, ROWS
from ollampi.kernels.linear import Matrix
from ollampi.kernels.quantised import Quantised
from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.decoder import Decoder
from ollampi.mpiruntime.decoder_layer import Cut, look_away
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.memory import BITS
from ollampi.mpiruntime.model_config import ModelConfig, read_config
from ollampi.mpiruntime.overlap import Halving
from ollampi.mpiruntime.placement import Placement
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.step import Chunk, Step
from ollampi.mpiruntime.weights import Piece, Weights

BLOCK = 16


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    def settings(self) -> dict[str, object]:
        """Return the fields of its config.json."""
        return {
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.mlp_width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }

    def config(self) -> ModelConfig:
        """Return its config."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(self.settings()))
            return read_config(Path(folder))


EIGHT_BILLION = Shape(4096, 14336, 32, 32, 8, 128256)
TINY = Shape(64, 160, 2, 4, 2, 128)


@dataclass(frozen=True)
class Drawn(Weights):
    """Random tensors on the device."""

    def stand_by(self, names: list[str]) -> None:
        """Do nothing."""

    def _vector(self, name: str, part: range, dtype: torch.dtype) -> Tensor:
        """Return ones, as norms have them."""
        return torch.ones(len(part), dtype=dtype, device=self.device)

    def _matrix(self, pieces: list[Piece]) -> Matrix:
        """Return random numbers in the format that is wanted."""
        if self.quantize == "none":
            return self._plain(pieces, self.dtype)
        bits = BITS[self.quantize]
        rows, width = sum(len(piece.rows) for piece in pieces), len(pieces[0].columns)
        shape = -(-rows // ROWS), -(-width // GROUP)
        weights = torch.randint(0, 256, (*shape, 64 * bits), dtype=torch.uint8, device=self.device)
        scales = torch.full((*shape, ROWS), 0.02 / (1 << (bits - 1)), dtype=torch.bfloat16, device=self.device)
        return Quantised(bits, rows, width, weights, scales, self.dtype)

    def _plain(self, pieces: list[Piece], dtype: torch.dtype) -> Tensor:
        """Return random numbers."""
        shape = sum(len(piece.rows) for piece in pieces), len(pieces[0].columns)
        return torch.empty(shape, dtype=dtype, device=self.device).normal_(std=0.02)


class DrawnModel:
    """A random model on a device, with a cache of one context for each of some sequences."""

    def __init__(self, shape: Shape, place: Placement, dtype: torch.dtype, quantize: str, streams: int) -> None:
        assert place.gpu is not None
        config = shape.config()
        self.context, comm = 2176, Single()
        weights = Drawn(dtype, place.gpu, quantize, device=place.device)
        self.decoder = Decoder(weights, config, Cut(Shard(0, 1), comm, comm), self.context)
        self.blocks = -(-self.context // BLOCK)
        sizes = config.num_layers, self.blocks * streams, BLOCK, config.num_kv_heads, config.head_dim
        kept = str(dtype).removeprefix("torch.")
        self.cache = KVCache(*sizes, dtype, kept, place.device, spare=True)
        self.steps = place.steps(self.decoder, self.cache, Halving("never", []))
        self.vocab = shape.vocab

    @torch.inference_mode()
    def prefill(self, count: int) -> Tensor | None:
        """Return the logits [1, V] behind a prompt of so many tokens."""
        tokens = [7 * i % self.vocab for i in range(count)]
        return self.steps(Step(0, [Chunk(tokens, 0, list(range(self.blocks)), 1)]), look_away).logits

    @torch.inference_mode()
    def decode(self, streams: int, position: int) -> Tensor | None:
        """Return the logits [B, V] of one more token of each sequence at a position."""
        tables = [list(range(i * self.blocks, (i + 1) * self.blocks)) for i in range(streams)]
        used = position // BLOCK + 1
        chunks = [Chunk([3 + i], position, table[:used], 1) for i, table in enumerate(tables)]
        return self.steps(Step(0, chunks), look_away).logits
