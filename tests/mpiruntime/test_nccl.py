"""Sums through NCCL, which a fake between threads stands for; what it cannot join is refused with reason and remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.devices import facts_on
from support.exchanges import assert_shared_rows, assert_sums_under_way
from support.fake_nccl import FakeNccl, install, on_cpu, on_gpu

from ollampi.mpiruntime import nccl
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import ConfigError, WorldError
from ollampi.mpiruntime.exchange import Exchange
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.gpu_exchange import choose_gpu_exchange
from ollampi.mpiruntime.nccl import Nccl, RankGpu, join_nccl
from ollampi.mpiruntime.thread_world import run_threads

SIZES = (1, 2, 3, 5)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNccl:
    found = install(monkeypatch)
    properties = lambda device: SimpleNamespace(uuid=f"GPU-{device.index}")  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    return found


def run_joined(size: int, work: Callable[[Nccl], object]) -> None:
    """Do the work on each of `size` ranks, which have a GPU each."""
    run_threads(size, lambda comm: work(join_nccl(comm, torch.device("cuda", comm.rank))))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_of_gpus_go_through_nccl_on_torchs_stream(fake: FakeNccl, size: int, dtype: torch.dtype) -> None:
    def work(comm: Nccl) -> None:
        x = on_gpu(torch.arange(12).view(3, 4).t().to(dtype) + comm.rank)
        before = x.clone()
        for wait in (comm.all_reduce_later(x), lambda: comm.all_reduce(x)):
            total = on_cpu(wait())
            assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            expected = torch.arange(12).view(3, 4).t() * size + sum(range(size))
            assert torch.equal(total, expected.to(total.dtype))
        assert torch.equal(x, before)

    run_joined(size, work)
    assert fake.calls == ["allReduce"] * 2 * size
    assert fake.streams == {77}


@pytest.mark.parametrize("size", SIZES)
def test_uneven_widths_are_joined_on_rank_0(fake: FakeNccl, size: int) -> None:
    def work(comm: Nccl) -> None:
        x = torch.arange(2.0 * (comm.rank + 1)).view(2, -1) + 10 * comm.rank
        joined = comm.gather(on_gpu(x.bfloat16()))
        if comm.rank:
            assert joined is None
            return
        assert joined is not None
        parts = [torch.arange(2.0 * (r + 1)).view(2, -1) + 10 * r for r in range(size)]
        assert torch.equal(on_cpu(joined), torch.cat(parts, dim=-1))

    run_joined(size, work)
    assert sorted(fake.calls) == ["recv"] * (size - 1) + ["send"] * (size - 1)
    assert fake.groups == 1


@pytest.mark.parametrize("size", SIZES)
def test_tensors_are_shared_and_rows_are_their_owners(fake: FakeNccl, size: int) -> None:
    def work(comm: Nccl) -> None:
        x = on_gpu(torch.full((3, 2), comm.rank, dtype=torch.bfloat16))
        comm.share(x)
        assert on_cpu(x).eq(0).all()
        owners = torch.tensor([size - 1, 0])
        rows = on_gpu(torch.full((2, 4), float(comm.rank)))
        assert on_cpu(comm.share_rows(rows, owners))[:, 0].tolist() == owners.tolist()

    run_joined(size, work)
    assert sorted(fake.calls) == ["allReduce"] * size + ["broadcast"] * size


@pytest.mark.parametrize("size", SIZES)
def test_tensors_of_the_cpu_and_messages_go_the_other_way(fake: FakeNccl, size: int) -> None:
    def work(comm: Nccl) -> None:
        assert_sums_under_way(comm)
        assert_shared_rows(comm)
        joined = comm.gather(torch.ones(1, 2))
        assert joined is None or joined.shape == (1, 2 * size)
        x = torch.full((2,), comm.rank)
        comm.share(x)
        assert x.tolist() == [0, 0]
        assert comm.collect(b"x") == [b"x"] * size

    run_joined(size, work)
    assert fake.calls == []


def refusal(size: int, device: Callable[[int], torch.device]) -> str:
    """Return the words with which all ranks refuse to join."""
    told: list[str] = []

    def work(comm: Communicator) -> None:
        with pytest.raises(WorldError) as refused:
            join_nccl(comm, device(comm.rank))
        told.append(str(refused.value))

    run_threads(size, work)
    assert len(told) == size
    assert len(set(told)) == 1
    return told[0]


def test_gpus_and_cpus_do_not_mix(fake: FakeNccl) -> None:
    words = refusal(4, lambda rank: torch.device("cuda", rank) if rank % 2 == 0 else torch.device("cpu"))
    assert words == (
        "exchange.link=nccl joins GPUs only, and of these ranks 0, 2 compute on GPUs and 1, 3 on CPUs; give every rank"
        " a GPU, or use exchange.link=mpi, which goes through the memory of the hosts"
    )
    assert "these ranks compute on CPUs" in refusal(2, lambda rank: torch.device("cpu"))
    assert fake.worlds == {}


def test_two_ranks_on_one_gpu_are_named(fake: FakeNccl) -> None:
    words = refusal(3, lambda rank: torch.device("cuda", min(rank, 1)))
    assert "ranks 1, 2 share GPU-1" in words
    assert "start as many ranks as there are GPUs, or use exchange.link=mpi" in words
    assert "lets ranks share a GPU" in words
    assert fake.worlds == {}


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (
            ["cuda:0", "cpu", "cuda:1"],
            r"of these ranks 0, 2 compute on GPUs and 1 on CPUs; give every rank a GPU, or use",
        ),
        (
            ["cuda:0", "cuda:1", "cuda:0"],
            r"ranks 0, 2 share GPU-0 of .*; start as many ranks as there are GPUs, or use",
        ),
    ],
)
def test_a_world_that_wants_nccl_and_cannot_have_it_is_refused_on_all_ranks(
    fake: FakeNccl, devices: list[str], words: str
) -> None:
    facts = [replace(fact, device=device) for fact, device in zip(facts_on(["a"] * 3), devices, strict=True)]
    settings = ExchangeSettings(link="nccl")

    def work(comm: Communicator) -> bool:
        with pytest.raises(ConfigError, match=rf"{words} exchange\.link=mpi"):
            choose_gpu_exchange(comm, facts, settings, lambda: Exchange(comm, comm, "MPI"))
        return True

    assert run_threads(3, work) == [True] * 3
    assert fake.worlds == {}


def test_one_name_on_two_hosts_is_two_gpus() -> None:
    gpus = [RankGpu(host, "0000:01:00.0", None) for host in "ab"]
    nccl.check(gpus)
    with pytest.raises(WorldError, match=r"0000:01:00\.0"):
        nccl.check([gpus[0], gpus[0]])


def test_a_rank_without_nccl_is_named_with_the_remedy(fake: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.available = False
    assert "cannot be had on rank 0: cupy finds no NCCL; install" in refusal(2, lambda r: torch.device("cuda", r))
    monkeypatch.setitem(sys.modules, "cupy", None)
    words = refusal(2, lambda rank: torch.device("cuda", rank))
    assert "pip install -e '.[cuda]'" in words
    assert words.endswith("use exchange.link=mpi, which goes through the memory of the hosts")


@pytest.mark.parametrize("call", ["get_unique_id", "NcclCommunicator"])
def test_what_nccl_says_is_passed_on(fake: FakeNccl, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("NCCL_ERROR_SYSTEM_ERROR: no socket")

    monkeypatch.setattr(fake, call, fail)
    words = refusal(3, lambda rank: torch.device("cuda", rank))
    assert words.startswith(
        "NCCL cannot join the ranks: NCCL_ERROR_SYSTEM_ERROR: no socket; NCCL_DEBUG=INFO tells more"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_a_world_of_one_adds_up() -> None:
    if (lacking := nccl.nccl_lacking()) is not None:
        pytest.skip(lacking)

    def work(comm: Communicator) -> torch.Tensor:
        joined = join_nccl(comm, torch.device("cuda", 0))
        return joined.all_reduce(torch.arange(5, device="cuda").bfloat16()).cpu()

    assert run_threads(1, work)[0].tolist() == [0, 1, 2, 3, 4]
