"""Add up the hidden states of one prompt over its chunks to its embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ollampi.mpiruntime.step import Chunk

NOT_FINITE_TEXT = "embedding contains NaN or Inf values"  # Ollama's words


class Pool:
    """One hidden state of a prompt, of its "first" or "last" token or the "mean" of all. Rank 0 only.

    Only a prompt that is one chunk has a first token here.
    """

    def __init__(self, pooling: str) -> None:
        self.pooling = pooling
        self._total: NDArray[np.float64] = np.zeros(1)
        self._count = 0

    def wanted(self, num_tokens: int, last: bool) -> tuple[int, int]:
        """Return of how many tokens the pool wants the sum, and how many lie behind these.

        `last` tells the prompt's last chunk.
        """
        if self.pooling == "first":
            return 1, num_tokens - 1
        return num_tokens if self.pooling == "mean" else int(last), 0

    def add(self, chunk: Chunk, total: NDArray[np.float64]) -> None:
        """Add the sum total [D] of what the chunk asked for; a prompt that begins again (preempted) starts at 0."""
        if chunk.start == 0:
            self._total, self._count = np.zeros(1), 0
        self._total = self._total + total
        self._count += chunk.num_pooled

    @property
    def finite(self) -> bool:
        """Return whether all values so far are finite."""
        return bool(np.isfinite(self._total).all())

    @property
    def embedding(self) -> NDArray[np.float32]:
        """Return the pooled hidden state [D]."""
        return (self._total / self._count).astype(np.float32)
