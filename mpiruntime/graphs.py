"""Record the steps in which answers go on by one token each, and play them again: a launch for a whole step.

Steps of one shape are the same work on other numbers: on a GPU it is recorded once for each shape, with the tensors
that it reads and writes, and started as a whole. Shapes are few: rows and blocks are filled up to powers of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ollampi.mpiruntime.gpu_batch import Answers, GpuBatch, answers_batch

MOST_ROWS = 64  # of a recorded step; the starts of kernels are a small part of longer ones


class Graph(Protocol):
    """Recorded work of a GPU."""

    def record(self, work: Callable[[], Tensor | None]) -> Tensor | None:
        """Do the work, then record it; return the tensor [B, V] that each replay writes."""

    def replay(self) -> None:
        """Do the recorded work again; does not wait."""


class CudaGraph:
    """A graph of CUDA; graphs of one pool share memory, since only one is replayed at a time."""

    def __init__(self, pool: object) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool

    def record(self, work: Callable[[], Tensor | None]) -> Tensor | None:
        """Do the work on a stream of its own, where libraries make what they need, then record it; return [B, V]."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            work()
        current.wait_stream(stream)
        with torch.cuda.graph(self._graph, pool=self._pool):  # type: ignore[arg-type]
            return work()

    def replay(self) -> None:
        """Start the recorded work on the current stream."""
        self._graph.replay()


def cuda_graphs() -> Callable[[], Graph]:
    """Return what makes the graphs of one model."""
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(pool)


@dataclass(frozen=True)
class _Recorded:
    """A graph, the numbers that it reads and the logits that it writes."""

    graph: Graph
    each: Tensor
    logits: Tensor | None


class Graphs:
    """The recorded steps of one model on this rank.

    compute: makes the logits of a batch, by the model and cache that it belongs to: with these the graphs go. All ranks
    record and replay alike, since their steps are alike. spare_block: a block that is no sequence's.
    """

    def __init__(
        self,
        compute: Callable[[GpuBatch], Tensor | None],
        make_graph: Callable[[], Graph],
        spare_block: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        self._compute = compute
        self._make_graph = make_graph
        self._spare_block = spare_block
        self._block_size = block_size
        self._device = device
        self._recorded: dict[tuple[int, int], _Recorded] = {}

    @staticmethod
    def suits(step: Answers | None) -> bool:
        """Return whether a step is one that is worth recording."""
        return step is not None and len(step.each) <= MOST_ROWS

    def __call__(self, step: Answers) -> Tensor | None:
        """Return the logits [B, V] of a step on rank 0 and None elsewhere; collective."""
        count, num_blocks = len(step.each), step.each.shape[1] - 4
        shape = _power(count), _power(num_blocks)
        numbers = torch.from_numpy(step.padded(*shape, self._spare_block, self._block_size))
        recorded = self._recorded.get(shape)
        if recorded is None:
            recorded = self._recorded[shape] = self._record(numbers.to(self._device), shape[1] * self._block_size)
        else:
            held = numbers.pin_memory() if self._device.type == "cuda" else numbers
            recorded.each.copy_(held, non_blocking=True)
        recorded.graph.replay()
        return None if recorded.logits is None else recorded.logits[:count].clone()  # the next step overwrites them

    def _record(self, each: Tensor, longest: int) -> _Recorded:
        """Return the graph of steps of the shape of each [B, 4 + M], which is kept as its input."""
        graph = self._make_graph()
        return _Recorded(graph, each, graph.record(lambda: self._compute(answers_batch(each, longest))))


def _power(count: int) -> int:
    """Return the least power of two that is no less."""
    return 1 << max(0, count - 1).bit_length()
