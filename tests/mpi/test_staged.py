"""Ranks on GPUs, which are made up here, add up through MPI; NCCL refuses ranks on CPUs alike."""

from __future__ import annotations

import pytest
import torch
from support.fake_nccl import on_cpu, on_gpu, pin

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import WorldError
from ollampi.mpiruntime.nccl import join_nccl
from ollampi.mpiruntime.staged import Staged

pytestmark = pytest.mark.mpi


def test_tensors_of_gpus_travel_through_memory_of_the_host(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch)
    both, ranks = Staged(comm), range(comm.size)
    x = torch.arange(12, dtype=torch.bfloat16).view(3, 4) + comm.rank
    expected = comm.size * torch.arange(12.0).view(3, 4) + sum(ranks)
    assert torch.equal(on_cpu(both.all_reduce(on_gpu(x))), expected)
    assert torch.equal(on_cpu(both.all_reduce_later(on_gpu(x))()), expected)
    joined = both.gather(on_gpu(torch.full((2, comm.rank + 1), float(comm.rank))))
    assert (joined is None) == (comm.rank > 0)
    if joined is not None:
        assert on_cpu(joined).tolist() == [[float(r) for r in ranks for _ in range(r + 1)]] * 2
    given = on_gpu(torch.full((5,), comm.rank, dtype=torch.bfloat16))
    both.share(given)
    assert on_cpu(given).eq(0).all()


def test_nccl_refuses_ranks_on_cpus_alike(comm: Communicator) -> None:
    with pytest.raises(
        WorldError, match=r"these ranks compute on CPUs; give every rank a GPU, or use exchange.link=mpi"
    ):
        join_nccl(comm, torch.device("cpu"))
    assert comm.collect(b"on") == [b"on"] * comm.size
