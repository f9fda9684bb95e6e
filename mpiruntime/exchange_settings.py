"""Hold what the exchange between ranks depends on; the `exchange` part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ExchangeSettings:
    """How the ranks add up activations.

    link: auto, shared, mpi or nccl; interface: the network between hosts that MPI shall use, None for its own choice;
    communication_strategy: none, compressed, or auto, which compresses where the measurement at the start says that it
    pays; compression_level: 0 to 4 (kernels/codec.py), the one of compressed and the most of auto;
    synchronization_points: all, or attention_only, which adds up once in a layer instead of twice (approximate but for
    models whose attention and MLP see the same input); prefetch_factor: how many layers ahead are read where weights do
    not stay in memory; overlap: auto, always or never: whether steps of many tokens are computed in two halves, one of
    which is exchanged meanwhile, auto for what is faster between hosts; timeout_s: how long a rank waits for another
    one in a collective of a step; table: the file that keeps what was measured at the start, None for none.
    """

    link: str = "auto"
    interface: str | None = None
    communication_strategy: str = "auto"
    compression_level: int = 2
    synchronization_points: str = "all"
    prefetch_factor: int = 2
    overlap: str = "auto"
    timeout_s: float = 30.0
    table: str | None = None
