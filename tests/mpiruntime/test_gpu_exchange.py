"""Ranks on GPUs go through NCCL where they can, else by the memory of their hosts."""

from __future__ import annotations

import pytest
import torch
from support.devices import facts_on

from ollampi.mpiruntime.communicator import Around, Communicator, Single
from ollampi.mpiruntime.errors import ConfigError, WorldError
from ollampi.mpiruntime.exchange import Exchange
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.gpu_exchange import can_record, choose_gpu_exchange
from ollampi.mpiruntime.nccl import Nccl
from ollampi.mpiruntime.staged import Staged
from ollampi.mpiruntime.thread_world import run_threads


def refuse(comm: Communicator, device: torch.device) -> Communicator:
    raise WorldError(f"no NCCL on {device}")


def chosen(size: int, wanted: str, works: bool, strategy: str = "auto") -> list[Exchange]:
    """Return the exchange of each rank of a world on GPUs."""
    settings = ExchangeSettings(link=wanted, communication_strategy=strategy)
    facts = facts_on(["a"] * size)

    def work(comm: Communicator) -> Exchange:
        join = (lambda comm, device: Around(comm)) if works else refuse
        return choose_gpu_exchange(comm, facts, settings, lambda: Exchange(comm, comm, "MPI"), join)  # type: ignore[arg-type]

    return run_threads(size, work)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("wanted", ["auto", "nccl"])
def test_nccl_is_taken_where_it_can_be_had(size: int, wanted: str) -> None:
    for exchange in chosen(size, wanted, True):
        assert (type(exchange.comm), exchange.told) == (Around, "NCCL")
        assert exchange.sums is exchange.comm


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("wanted", ["auto", "nccl"])
def test_activations_that_are_to_be_compressed_go_by_the_hosts(size: int, wanted: str) -> None:
    for exchange in chosen(size, wanted, True, "compressed"):
        assert isinstance(exchange.comm, Around)
        assert isinstance(exchange.sums, Staged)
        assert (
            exchange.told
            == "NCCL; activations through memory of the hosts, since they are compressed; there through MPI"
        )
        assert not can_record(exchange)


@pytest.mark.parametrize("size", [2, 3])
def test_steps_are_recorded_where_all_goes_through_nccl(size: int) -> None:
    def work(comm: Communicator) -> list[bool]:
        joined = Nccl(comm, None, None)  # type: ignore[arg-type]
        return [can_record(Exchange(joined, sums, "")) for sums in (joined, Staged(comm), comm)]

    assert run_threads(size, work) == [[True, False, False]] * size


@pytest.mark.parametrize("size", [2, 3, 4])
def test_without_nccl_tensors_go_by_the_hosts(size: int) -> None:
    for exchange in chosen(size, "auto", False):
        assert isinstance(exchange.comm, Staged)
        assert isinstance(exchange.sums, Staged)
        assert not can_record(exchange)
        assert exchange.told == "memory of the hosts, since there is no NCCL: no NCCL on cuda:0; there through MPI"
    for wanted in ("mpi", "shared"):
        assert all(isinstance(exchange.comm, Staged) for exchange in chosen(size, wanted, True))
    with pytest.raises(ConfigError, match="no NCCL on cuda:0"):
        chosen(size, "nccl", False)


def test_nccl_is_refused_on_cpus_and_for_ranks_that_share_a_gpu() -> None:
    def work(comm: Communicator) -> Exchange:
        settings = ExchangeSettings(link="nccl")
        return choose_gpu_exchange(comm, facts_on([""] * 2), settings, lambda: Exchange(comm, comm, "MPI"))

    with pytest.raises(ConfigError, match=r"joins GPUs only, and these ranks compute on CPUs; .*exchange\.link=mpi"):
        run_threads(2, work)


def test_a_world_of_one_exchanges_nothing() -> None:
    alone = Exchange(Single(), Single(), "")
    exchange = choose_gpu_exchange(Single(), facts_on(["a"]), ExchangeSettings(), lambda: alone, refuse)
    assert (type(exchange.comm), exchange.told) == (Single, "")
    assert can_record(exchange)
