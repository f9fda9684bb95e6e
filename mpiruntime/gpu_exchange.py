"""Choose how ranks that compute on GPUs exchange tensors: through NCCL, or by the memory of their hosts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import ConfigError, WorldError
from ollampi.mpiruntime.exchange import Exchange
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.nccl import Nccl, join_nccl
from ollampi.mpiruntime.staged import Staged
from ollampi.mpiruntime.world import RankFacts

Join = Callable[[Communicator, torch.device], Communicator]


def choose_gpu_exchange(
    comm: Communicator,
    facts: list[RankFacts],
    settings: ExchangeSettings,
    by_hosts: Callable[[], Exchange],
    join: Join = join_nccl,
) -> Exchange:
    """Return the exchange of ranks on GPUs; collective, the same on all ranks.

    The link auto takes NCCL where it can be had; NCCL compresses nothing, so that activations go by the hosts where
    they are to be compressed. by_hosts: makes the exchange of tensors in the memory of the hosts. Raise ConfigError on
    all ranks where "nccl" is wanted and cannot be had: on CPUs, or where ranks share a GPU.
    """
    wanted = settings.link
    if comm.size == 1 and wanted != "nccl":
        return by_hosts()
    if wanted in ("mpi", "shared"):
        return _staged(by_hosts(), "as asked for")
    try:
        joined = join(comm, torch.device(facts[comm.rank].device))
    except WorldError as e:
        if wanted == "nccl":
            raise ConfigError(str(e)) from e
        return _staged(by_hosts(), f"since there is no NCCL: {e}")
    if settings.communication_strategy != "compressed" or settings.compression_level == 0:
        return Exchange(joined, joined, "NCCL")
    staged = _staged(by_hosts(), "since they are compressed")
    return Exchange(joined, staged.sums, f"NCCL; activations through {staged.told}")


def can_record(exchange: Exchange) -> bool:
    """Return whether a CUDA graph can hold what ranks exchange."""
    return exchange.comm.size == 1 or all(isinstance(comm, Nccl) for comm in (exchange.comm, exchange.sums))


def _staged(exchange: Exchange, why: str) -> Exchange:
    """Return an exchange whose tensors come from GPUs and go back there."""
    told = f"memory of the hosts, {why}; there through {exchange.told}"
    return Exchange(Staged(exchange.comm), Staged(exchange.sums), told)
