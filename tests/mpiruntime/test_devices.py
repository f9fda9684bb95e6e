"""Each rank gets a device; worlds that cannot work are refused with the reason and the remedy."""

from __future__ import annotations

import pytest
from support.devices import FakeGpus

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.devices import CudaGpus, Gpu, deal, place
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import RankFacts, survey

A, B, C = (Gpu(name, "GPU of a test") for name in "abc")


def placed(wanted: str, visible: list[list[Gpu]]) -> list[RankFacts]:
    """Return the facts of a world whose ranks see these GPUs."""
    fakes = [FakeGpus(each) for each in visible]

    def work(comm: Communicator) -> list[RankFacts]:
        return place(comm, survey(comm), wanted, fakes[comm.rank])

    found = run_threads(len(visible), work)
    assert all(facts == found[0] for facts in found)
    for fact, fake in zip(found[0], fakes, strict=True):
        assert [f"cuda:{number}" for number in fake.used] == [fact.device] * (fact.device != "cpu")
    return found[0]


@pytest.mark.parametrize(
    ("visible", "numbers"),
    [
        ([[A, B], [A, B]], [0, 1]),
        ([[A, B]] * 5, [0, 1, 0, 1, 0]),
        ([[A], [B], [C]], [0, 0, 0]),  # as a launcher binds them
        ([[A, B], [C], [A, B]], [0, 0, 1]),
        ([[A], [A, B]], [0, 1]),
        ([[A]] * 3, [0, 0, 0]),
    ],
)
def test_gpus_are_dealt_evenly_however_they_are_seen(visible: list[list[Gpu]], numbers: list[int]) -> None:
    assert deal(visible) == numbers


@pytest.mark.parametrize("size", range(1, 5))
def test_auto_takes_the_cpu_where_there_is_no_gpu(size: int) -> None:
    assert {fact.device for fact in placed("auto", [[]] * size)} == {"cpu"}


@pytest.mark.parametrize("size", range(1, 5))
def test_cpu_looks_at_no_gpu(size: int) -> None:
    assert {(fact.device, fact.identity) for fact in placed("cpu", [[A]] * size)} == {("cpu", "")}


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.parametrize("size", range(1, 5))
def test_every_rank_knows_every_device(wanted: str, size: int) -> None:
    facts = placed(wanted, [[A, B]] * size)
    assert [fact.device for fact in facts] == [f"cuda:{rank % 2}" for rank in range(size)]
    assert [fact.identity for fact in facts] == ["ab"[rank % 2] for rank in range(size)]
    assert {(fact.gpu, fact.gpu_bytes) for fact in facts} == {(A.name, FakeGpus.FREE_BYTES)}


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_mixed_world_is_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot mix .* see no GPU: 1 on .*, 2 on .*; .* or use device=cpu"):
        placed(wanted, [[A], [], []])


def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="no rank sees one; use device=cpu, or a torch that was built for CUDA"):
        placed("cuda", [[], []])


def test_this_machine_is_asked_without_harm() -> None:
    assert all(gpu.identity for gpu in CudaGpus().visible())


def test_a_rank_on_a_gpu_tells_what_is_in_its_memory() -> None:
    on_cpu, on_gpu = (LoadReport(0, (0, 1), (0, 1), 5, 7, 0, [], 0.0, device=device) for device in ("cpu", "cuda:1"))
    assert (on_cpu.held_bytes, on_cpu.gpu_bytes) == (12, 0)
    assert (on_gpu.held_bytes, on_gpu.gpu_bytes) == (12, 12)
