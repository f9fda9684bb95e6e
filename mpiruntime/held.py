"""Keep rows of logits until it is known which tokens their sequences may take; rank 0 only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ollampi.mpiruntime.guides import Guides
from ollampi.mpiruntime.sequence import Sequence
from ollampi.mpiruntime.step import Chunk

GRACE_S = 0.002  # how long a step waits for masks; later ones cost their own sequence a step, and nobody else
Logits = NDArray[np.float32]
Planned = list[tuple[Sequence, Chunk]]


class HeldRows:
    """The rows of one engine, by the number of their model.

    A sequence with a grammar has one row, and one for each token of its draft that the grammar allows.
    """

    def __init__(self, guides: Guides) -> None:
        self._guides = guides
        self._rows: dict[int, dict[Sequence, tuple[Chunk, Logits]]] = {}

    def sift(self, model: int, planned: Planned, logits: Logits) -> tuple[Planned, Logits]:
        """Return the sequences whose next token can be chosen, with their rows of logits [B', V]; keep the others'."""
        guided = [sequence.guide for sequence, _ in planned if sequence.guide is not None]
        if not guided:
            return planned, logits
        self._guides.wait_for(guided, GRACE_S)
        held = self._rows.setdefault(model, {})
        ready: Planned = []
        rows: list[int] = []
        row = 0
        for sequence, chunk in planned:
            held.pop(sequence, None)  # of a sequence that was computed again
            if sequence.guide is None or sequence.guide.ready:
                ready.append((sequence, _judged(sequence, chunk)))
                rows += range(row, row + ready[-1][1].num_logits)
            else:
                held[sequence] = chunk, logits[row : row + chunk.num_logits].copy()
            row += chunk.num_logits
        return ready, logits[rows]

    def release(self, model: int) -> tuple[Planned, Logits]:
        """Return the sequences of a model that waited and can go on now, with their rows of logits [B', V]."""
        held = self._rows.get(model, {})
        for sequence in [s for s in held if s.pending]:
            del held[sequence]  # it stepped back, and will be computed again
        ready = [sequence for sequence in held if sequence.guide is not None and sequence.guide.ready]
        if not ready:
            return [], np.empty((0, 0), np.float32)
        found = [held.pop(sequence) for sequence in ready]
        planned = [(sequence, _judged(sequence, chunk)) for sequence, (chunk, _) in zip(ready, found, strict=True)]
        rows = [rows[: chunk.num_logits] for (_, chunk), (_, rows) in zip(planned, found, strict=True)]
        return planned, np.concatenate(rows)

    def drop(self, model: int, sequence: Sequence) -> None:
        """Forget a sequence that has ended."""
        self._rows.get(model, {}).pop(sequence, None)


def _judged(sequence: Sequence, chunk: Chunk) -> Chunk:
    """Return a chunk with logits only where it is known what may come."""
    if sequence.guide is None:
        return chunk
    return chunk._replace(num_logits=min(chunk.num_logits, len(sequence.guide.masks)))
