"""Any communicator serves ranks on GPUs through memory of the host."""

from __future__ import annotations

import pytest
import torch
from support.exchanges import assert_shared_rows, assert_sums_under_way
from support.fake_nccl import on_cpu, on_gpu, pin

from ollampi.mpiruntime import staged
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.staged import Staged
from ollampi.mpiruntime.thread_world import run_threads

SIZES = (1, 2, 3, 4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_come_back_to_the_gpu(monkeypatch: pytest.MonkeyPatch, size: int, dtype: torch.dtype) -> None:
    asked = pin(monkeypatch)
    parts = torch.randn(size, 3, 5).to(dtype)

    def work(comm: Communicator) -> list[torch.Tensor]:
        x, both = on_gpu(parts[comm.rank]), Staged(comm)
        wait = both.all_reduce_later(x)
        return [on_cpu(wait()), on_cpu(both.all_reduce(x)), comm.all_reduce(parts[comm.rank])]

    for later, now, expected in run_threads(size, work):
        assert later.dtype == now.dtype == expected.dtype
        assert torch.equal(later, expected)
        assert torch.equal(now, expected)
    assert asked == [15 * dtype.itemsize] * 2 * size  # in the dtype of x: fewer bytes travel than of the sum


@pytest.mark.parametrize("size", SIZES)
def test_rows_and_widths_of_all_ranks_come_back_to_the_gpu(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    pin(monkeypatch)

    def work(comm: Communicator) -> None:
        both = Staged(comm)
        x = torch.full((2, comm.rank + 1), float(comm.rank))
        joined, expected = both.gather(on_gpu(x)), comm.gather(x)
        if expected is None:
            assert joined is None
        else:
            assert joined is not None
            assert torch.equal(on_cpu(joined), expected)
        given = on_gpu(torch.full((3, 2), comm.rank, dtype=torch.int32))
        both.share(given)
        assert on_cpu(given).tolist() == [[0, 0]] * 3
        owners = torch.tensor([size - 1, 0])
        rows = on_gpu(torch.full((2, 4), float(comm.rank)))
        assert on_cpu(both.share_rows(rows, owners))[:, 0].tolist() == owners.tolist()

    run_threads(size, work)


@pytest.mark.parametrize("size", SIZES)
def test_tensors_of_the_cpu_and_messages_pass_as_they_are(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    asked = pin(monkeypatch)

    def work(comm: Communicator) -> None:
        both = Staged(comm)
        assert_sums_under_way(both)
        assert_shared_rows(both)
        x = torch.full((2,), comm.rank)
        both.share(x)
        assert x.tolist() == [0, 0]
        joined = both.gather(torch.ones(1, 2))
        assert joined is None or joined.shape == (1, 2 * size)
        assert both.collect(bytes([comm.rank])) == [bytes([r]) for r in range(size)]
        assert both.broadcast(b"step" if comm.rank == 0 else None) == b"step"

    run_threads(size, work)
    assert asked == []


def test_the_sum_is_of_what_was_there_when_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch)
    x = on_gpu(torch.ones(4))

    def work(comm: Communicator) -> torch.Tensor:
        wait = Staged(comm).all_reduce_later(x)
        x.zero_()
        return on_cpu(wait())

    assert run_threads(1, work)[0].tolist() == [1.0] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_tensors_travel_through_pinned_memory() -> None:
    def work(comm: Communicator) -> list[float]:
        x = torch.full((1000,), float(comm.rank + 1), device="cuda", dtype=torch.bfloat16)
        assert staged.on_host(x).is_pinned()
        total = Staged(comm).all_reduce(x)
        assert total.is_cuda
        assert total.dtype == torch.float32
        return [float(total.min()), float(total.max())]

    assert run_threads(3, work) == [[6.0, 6.0]] * 3
