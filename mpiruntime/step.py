"""Say what all ranks compute next, as plain integers that rank 0 sends."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """The tokens of one sequence in a step.

    start: position of tokens[0]; blocks: the sequence's block table, long enough for all its tokens so far;
    num_logits: how many of the last tokens the sampler wants logits of.
    """

    tokens: list[int]
    start: int
    blocks: list[int]
    num_logits: int


@dataclass(frozen=True)
class Step:
    """One forward pass of one model over some chunks. Equal on every rank."""

    model: int
    chunks: list[Chunk]

    def encode(self) -> bytes:
        """Return the step as native int32s: model, then per chunk four counts, the tokens and the blocks."""
        flat = array("i", [self.model])
        for c in self.chunks:
            flat.extend((len(c.tokens), c.start, len(c.blocks), c.num_logits))
            flat.extend(c.tokens)
            flat.extend(c.blocks)
        return flat.tobytes()

    @classmethod
    def decode(cls, data: bytes) -> Step:
        """Return the step that `encode` wrote."""
        flat = array("i")
        flat.frombytes(data)
        return cls(flat[0], list(_chunks(flat)))


def _chunks(flat: array[int]) -> Iterator[Chunk]:
    """Yield the chunks after the model number."""
    at = 1
    while at < len(flat):
        num_tokens, start, num_blocks, num_logits = flat[at : at + 4]
        tokens_end = at + 4 + num_tokens
        blocks_end = tokens_end + num_blocks
        yield Chunk(flat[at + 4 : tokens_end].tolist(), start, flat[tokens_end:blocks_end].tolist(), num_logits)
        at = blocks_end
