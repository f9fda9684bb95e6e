"""Let ranks on GPUs add up and join their tensors through NCCL, which cupy brings into Python."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ollampi.kernels import gpu
from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.communicator import Around, Communicator, summable
from ollampi.mpiruntime.errors import WorldError

_BY_MPI = "or use exchange.link=mpi, which goes through the memory of the hosts"


@dataclass(frozen=True)
class RankGpu:
    """What a rank computes on. gpu: what no other GPU is called, None for a CPU; lacking: why it has no NCCL, if so."""

    host: str
    gpu: str | None
    lacking: str | None


class Nccl(Around):
    """The communicator `inner` whose tensors of GPUs go through NCCL, on torch's current stream.

    Nothing waits for the device, so CUDA graphs can hold sums. Tensors of the CPU and messages go through `inner`.
    nccl: cupy's module; joined: its communicator of all ranks, numbered as in `inner`.
    """

    def __init__(self, inner: Communicator, nccl: Any, joined: Any) -> None:
        super().__init__(inner)
        self._inner = inner
        self._nccl = nccl
        self._joined = joined
        self.share = self._share
        self.leave = self._leave

    def _leave(self) -> None:
        """Free NCCL's communicator and what lies beneath; collective."""
        if self._joined is not None:
            self._joined.destroy()
            self._joined = None
        self._inner.leave()

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x [...] over all ranks, in fp64 where x is, else in fp32; collective, moves buffers."""
        if not x.is_cuda:
            return self._inner.all_reduce(x)
        x = summable(x).contiguous()
        total = torch.empty_like(x)
        kind = self._nccl.NCCL_FLOAT64 if x.dtype == torch.float64 else self._nccl.NCCL_FLOAT32
        places = (x.data_ptr(), total.data_ptr())
        self._joined.allReduce(*places, x.numel(), kind, self._nccl.NCCL_SUM, _stream(x))
        return total

    def gather(self, x: Tensor) -> Tensor | None:
        """Return the x [B, d] of all ranks side by side in fp32 on rank 0 and None elsewhere; collective.

        The widths d travel as messages: rank 0 must know them before it can take the rest.
        """
        if not x.is_cuda:
            return self._inner.gather(x)
        x = x.float().contiguous()
        widths = [int(width) for width in self.collect(str(x.shape[1]).encode())]
        if self.rank:
            self._joined.send(x.data_ptr(), x.numel(), self._nccl.NCCL_FLOAT32, 0, _stream(x))
            return None
        others = [x.new_empty(x.shape[0], width) for width in widths[1:]]
        self._nccl.groupStart()
        for rank, part in enumerate(others, start=1):
            self._joined.recv(part.data_ptr(), part.numel(), self._nccl.NCCL_FLOAT32, rank, _stream(x))
        self._nccl.groupEnd()
        return torch.cat([x, *others], dim=-1)

    def _share(self, x: Tensor) -> None:
        """Fill x [...] on every rank with rank 0's; contiguous, collective, moves buffers."""
        if not x.is_cuda:
            self._inner.share(x)
            return
        self._joined.broadcast(x.data_ptr(), x.data_ptr(), x.nbytes, self._nccl.NCCL_UINT8, 0, _stream(x))


def join_nccl(comm: Communicator, device: torch.device) -> Nccl:
    """Return the communicator of all ranks through NCCL, each on its device; collective.

    Raise WorldError on all ranks, with the reason and the remedy, where one computes on a CPU or cannot have NCCL, or
    where two share a GPU.
    """
    mine = RankGpu(socket.gethostname(), gpu_of(device), nccl_lacking())
    told = [RankGpu(**json.loads(text)) for text in comm.collect(json.dumps(asdict(mine)).encode())]
    check(told)
    nccl = _loaded()
    made = agree(comm, lambda: _tried(nccl.get_unique_id) if comm.rank == 0 else (), WorldError)
    number = tuple(json.loads(comm.collect(json.dumps(made).encode())[0]))
    with gpu.loaded_cupy().cuda.Device(device.index):
        joined = agree(comm, lambda: _tried(nccl.NcclCommunicator, comm.size, number, comm.rank), WorldError)
    return Nccl(comm, nccl, joined)


def _loaded() -> Any:
    """Return cupy's NCCL; there is cupy."""
    from cupy.cuda import nccl  # as cupy itself, only where ranks compute on GPUs

    return nccl


def gpu_of(device: torch.device) -> str | None:
    """Return the identity of a GPU that it has in all processes and hosts; None for a CPU."""
    return None if device.type == "cpu" else str(torch.cuda.get_device_properties(device).uuid)


def nccl_lacking() -> str | None:
    """Return why this process cannot have NCCL, with the remedy, or None where it can."""
    if (reason := gpu.lacking()) is not None:
        return reason
    if not _loaded().available:
        return "cupy finds no NCCL; install a torch that was built for CUDA, which brings it, or nvidia-nccl-cu13"
    return None


def check(ranks: list[RankGpu]) -> None:
    """Raise WorldError, in the same words everywhere, where NCCL cannot join the ranks."""
    on_cpus = [rank for rank, each in enumerate(ranks) if each.gpu is None]
    on_gpus = [rank for rank, each in enumerate(ranks) if each.gpu is not None]
    if on_cpus:
        which = (
            f"of these ranks {_listed(on_gpus)} compute on GPUs and {_listed(on_cpus)} on CPUs"
            if on_gpus
            else ("these ranks compute on CPUs")
        )
        raise WorldError(f"exchange.link=nccl joins GPUs only, and {which}; give every rank a GPU, {_BY_MPI}")
    for each in ranks:
        sharing = [rank for rank, other in enumerate(ranks) if (other.host, other.gpu) == (each.host, each.gpu)]
        if len(sharing) > 1:
            raise WorldError(
                f"exchange.link=nccl needs a GPU for each rank, and ranks {_listed(sharing)} share {each.gpu} of"
                f" {each.host}; start as many ranks as there are GPUs, {_BY_MPI} and lets ranks share a GPU"
            )
    lacking = [(rank, each.lacking) for rank, each in enumerate(ranks) if each.lacking is not None]
    if lacking:
        rank, reason = lacking[0]
        raise WorldError(f"exchange.link=nccl cannot be had on rank {rank}: {reason}; {_BY_MPI.removeprefix('or ')}")


def _listed(ranks: list[int]) -> str:
    """Return numbers in words, such as "0, 2"."""
    return ", ".join(map(str, ranks))


def _tried(call: Any, *arguments: Any) -> Any:
    """Return what a call of NCCL returns; raise WorldError where it fails."""
    try:
        return call(*arguments)
    except RuntimeError as e:  # as cupy's NcclError is
        raise WorldError(f"NCCL cannot join the ranks: {e}; NCCL_DEBUG=INFO tells more, {_BY_MPI}") from e


def _stream(x: Tensor) -> int:
    """Return the handle of the stream on which torch computes with x [...]."""
    return torch.cuda.current_stream(x.device).cuda_stream
