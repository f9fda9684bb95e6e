"""Cut a step into halves, of which one is exchanged while the other is computed."""

from __future__ import annotations

from ollampi.mpiruntime.step import Chunk, Step


def halves(step: Step, both_ways: bool = False) -> list[Step]:
    """Return the step as two of about as many tokens, or as one where it cannot be cut; equal on every rank.

    A sequence is cut at a token, and what is behind sees what is before, since that is computed first layer by layer;
    with both_ways, where tokens see those behind them too, only between sequences. Pools are left out.
    """
    room = step.num_tokens // 2
    first: list[Chunk] = []
    second: list[Chunk] = []
    for chunk in step.chunks:
        size = len(chunk.tokens)
        taken = min(room, size)
        if both_ways:
            taken = size if 2 * room >= size else 0
        room = room - taken if taken == size else 0
        behind = size - taken
        if taken:
            num_logits = max(0, chunk.num_logits - behind)
            first.append(Chunk(chunk.tokens[:taken], chunk.start, chunk.blocks, num_logits))
        if behind:
            num_logits = min(chunk.num_logits, behind)
            second.append(Chunk(chunk.tokens[taken:], chunk.start + taken, chunk.blocks, num_logits))
    return [Step(step.model, chunks) for chunks in (first, second) if chunks]
