"""Compute the steps of one loaded model: on the CPU, or on a GPU, where the commonest ones are recorded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ollampi.mpiruntime.batch import make_batches
from ollampi.mpiruntime.decoder import Decoder, Output
from ollampi.mpiruntime.decoder_layer import Watch, look_away
from ollampi.mpiruntime.gpu_batch import Answers, GpuBatch, answers, make_gpu_batch
from ollampi.mpiruntime.graphs import Graph, Graphs
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.overlap import Halving
from ollampi.mpiruntime.step import Step
from ollampi.mpiruntime.watchdog import Place

CPU = torch.device("cpu")


class Steps(Protocol):
    """How a rank computes the steps of a model; halves: whether that may be in halves."""

    halves: bool

    def cuts(self, step: Step) -> bool:
        """Return whether a step is to be computed in halves. Rank 0 only, which tells the others."""

    def __call__(self, step: Step, watch: Watch) -> Output:
        """Return what the step's chunks ask for on rank 0, nothing elsewhere; collective.

        watch: as for a Decoder.
        """


class CpuSteps:
    """Steps of a model on the CPU, some of them in two halves."""

    def __init__(self, decoder: Decoder, cache: KVCache, halving: Halving) -> None:
        self._halving = halving
        self._decoder = decoder
        self._cache = cache
        self.halves = decoder.residence.most_passages > 1  # they are a layer apart and so need two buffers

    def cuts(self, step: Step) -> bool:
        """Return whether a step is to be computed in halves."""
        return self.halves and self._halving.cuts(step.num_tokens)

    def __call__(self, step: Step, watch: Watch) -> Output:
        """Return what the chunks ask for."""
        began = time.perf_counter()
        decoder, cache = self._decoder, self._cache
        batches = make_batches(step, cache.block_size, cache.slot_bytes, CPU, decoder.piece_tokens, decoder.both_ways)
        output = decoder(batches, cache, watch)
        self._halving.observe(step.num_tokens, step.halved, time.perf_counter() - began)
        return output


class GpuSteps:
    """Steps of a model on a GPU. Logits stay there; sums of hidden states come to the host.

    make_graph: makes the graphs that steps are recorded in, None where nothing is; all ranks have one, or none. where:
    what the watchdog sees of this rank, which waits for the device where others wait for each other.
    """

    halves = False

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        device: torch.device,
        make_graph: Callable[[], Graph] | None,
        where: Place,
    ) -> None:
        self._where = where
        self._decoder = decoder
        self._cache = cache
        self._device = device
        self._graphs = None
        if make_graph is not None and decoder.is_recordable:
            self._graphs = Graphs(self._logits, make_graph, cache.spare_block, cache.block_size, device)

    def cuts(self, step: Step) -> bool:
        """Return False: steps on a GPU are computed as a whole."""
        return False

    def __call__(self, step: Step, watch: Watch) -> Output:
        """Return what the chunks ask for; a step that somebody watches is not recorded."""
        rows = self._recorded(step) if watch is look_away else None
        if rows is not None and self._graphs is not None:
            output = Output(self._graphs(rows))
        else:
            batch = make_gpu_batch(step, self._cache.block_size, self._device, self._decoder.both_ways)
            output = self._decoder([batch], self._cache, watch)
        if self._device.type == "cuda":  # how long steps take decides how large the next ones are
            self._where.come("the sums of a step", True)
            torch.cuda.current_stream().synchronize()
            self._where.go()
        return output if output.pooled is None else replace(output, pooled=output.pooled.cpu())

    def _recorded(self, step: Step) -> Answers | None:
        """Return the step as rows where it is to be recorded, or played again."""
        if self._graphs is None or self._decoder.both_ways:
            return None
        rows = answers(step, self._cache.block_size)
        return rows if Graphs.suits(rows) else None

    def _logits(self, batch: GpuBatch) -> Tensor | None:
        """Return the logits [B, V] of a batch on rank 0."""
        return self._decoder([batch], self._cache).logits
