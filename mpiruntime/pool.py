"""Add up the hidden states of one prompt over its chunks to its embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ollampi.mpiruntime.step import Chunk

NOT_FINITE_TEXT = "embedding contains NaN or Inf values"  # Ollama's words


class Pool:
    """The mean of the hidden states of all tokens of a prompt, or only that of its last token. Rank 0 only."""

    def __init__(self, mean: bool) -> None:
        self.mean = mean
        self._total: NDArray[np.float64] = np.zeros(1)
        self._count = 0

    def wanted(self, num_tokens: int, last: bool) -> int:
        """Return of how many of the last tokens the pool wants the sum; `last` tells the prompt's last chunk."""
        return num_tokens if self.mean else int(last)

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
