"""Where a rank computes: how its device multiplies, makes steps, and what memory it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ollampi.kernels.choice import Choice
from ollampi.kernels.cuda_module import driver
from ollampi.mpiruntime.arithmetic import Arithmetic, arithmetic
from ollampi.mpiruntime.decoder import Decoder
from ollampi.mpiruntime.devices import free_on
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.gpu_arithmetic import OnGpu
from ollampi.mpiruntime.graphs import Graph, cuda_graphs
from ollampi.mpiruntime.heap import give_back
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.overlap import Halving
from ollampi.mpiruntime.step import Load
from ollampi.mpiruntime.stepping import CpuSteps, GpuSteps, Steps
from ollampi.mpiruntime.watchdog import Place
from ollampi.mpiruntime.world import RankFacts, free_memory, own_memory


@dataclass
class Placement:
    """The device of a rank; gpu: what layers compute with there, None on the CPU.

    holder: whose memory it is, in words, equal for ranks that share it. graphs: makes what makes the graphs of a model,
    None where steps are not recorded; all ranks record, or none. where: what the watchdog sees of this rank.
    """

    device: torch.device
    holder: str
    gpu: OnGpu | None = None
    graphs: Callable[[], Callable[[], Graph]] | None = None
    where: Place = field(default_factory=Place)

    def arithmetic(self, wanted: Load, choice: Choice, config: ModelConfig) -> Arithmetic:
        """Return what a model is to be computed with; raise ModelError where something forbids it."""
        if wanted.deterministic and (config.norm != "rms" or config.experts or config.activation == "gelu"):
            raise ModelError(
                f"deterministic=true cannot compute a model of type {config.model_type}; use deterministic=false"
            )
        if self.gpu is not None and not wanted.deterministic:
            return self.gpu
        return arithmetic(wanted.deterministic, wanted.quantize, wanted.kept, config.max_context, self.device, choice)

    def steps(self, decoder: Decoder, cache: KVCache, halving: Halving) -> Steps:
        """Return how the steps of a model are computed; halving: for the CPU alone."""
        if self.gpu is None:
            return CpuSteps(decoder, cache, halving)
        return GpuSteps(decoder, cache, self.device, None if self.graphs is None else self.graphs(), self.where)

    def free_bytes(self) -> int:
        """Return what can still be taken of the memory."""
        return free_on(self.device) if self.device.type == "cuda" else free_memory()

    def own_bytes(self) -> int | None:
        """Return what the limits of this process leave of the memory of the host, None where nothing limits it."""
        return own_memory() if self.device.type == "cpu" else None

    def gpus(self) -> list[dict[str, Any]]:
        """Return the GPU of this rank, if it has one, with its name and the bytes of its memory."""
        if self.device.type != "cuda":
            return []
        free, total = torch.cuda.mem_get_info(self.device)
        name = torch.cuda.get_device_name(self.device)
        return [{"name": name, "memory_total": total, "memory_available": free}]

    def give_back(self) -> None:
        """Give memory that nothing uses back to the system."""
        give_back()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def placement(fact: RankFacts, records: bool, where: Place | None = None) -> Placement:
    """Return where a rank computes.

    records: whether steps may be recorded on GPUs, which the exchange between ranks must allow; equal on all ranks.
    where: what the watchdog sees of it, None where nobody watches.
    """
    device = torch.device(fact.device)
    if device.type == "cpu":
        return Placement(device, f"host {fact.host}", where=where or Place())
    holder = f"{fact.gpu} {fact.identity} of host {fact.host}"
    return Placement(device, holder, OnGpu(driver()), cuda_graphs if records else None, where or Place())
