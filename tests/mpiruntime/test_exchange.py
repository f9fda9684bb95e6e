"""The exchange of tensors is chosen by all ranks alike, and said with its reason."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ollampi.kernels import native
from ollampi.mpiruntime import exchange
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.exchange import LARGE_BYTES, SMALL_BYTES, Exchange, choose_exchange
from ollampi.mpiruntime.shared_memory import SharedMemory
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import survey

needs_native = pytest.mark.skipif(native.library() is None, reason="the native kernels were not built")


def choose(wanted: str, folder: Path, hosts: int = 1) -> list[tuple[bool, str]]:
    """Return what three ranks chose: whether it is shared memory, and the words."""

    def work(comm: Communicator) -> tuple[bool, str]:
        facts = [dataclasses.replace(fact, host=f"host{fact.rank % hosts}") for fact in survey(comm)]
        chosen = choose_exchange(comm, facts, wanted, True, folder)
        total = chosen.comm.all_reduce(torch.ones(3))
        assert isinstance(total, Tensor)
        assert torch.equal(total, torch.full((3,), 3.0))
        return isinstance(chosen.comm, SharedMemory), chosen.told

    found = run_threads(3, work)
    assert list(folder.iterdir()) == []
    return found


@needs_native
@pytest.mark.parametrize(
    ("ours", "theirs", "wins"),
    [
        ((1e-6, 1e-3), (2e-6, 1e-3), True),
        ((1e-6, 1.1e-3), (2e-6, 1e-3), True),
        ((1e-6, 2e-3), (2e-6, 1e-3), False),
        ((2e-6, 1e-3), (1e-6, 9e-3), False),
    ],
)
def test_auto_takes_what_is_faster_on_the_slowest_rank(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ours: tuple[float, float],
    theirs: tuple[float, float],
    wins: bool,
) -> None:
    def timed(comm: Communicator, x: Tensor) -> float:
        seconds = (ours if isinstance(comm, SharedMemory) else theirs)[x.nbytes == LARGE_BYTES]
        return seconds if comm.rank == 1 else seconds / 100

    monkeypatch.setattr(exchange, "_timed", timed)
    found = choose("auto", tmp_path)
    first, second = [f"8 KiB in {s * 1e6:.1f} us and 1 MiB in {b * 1e6:.0f} us" for s, b in (ours, theirs)]
    told = f"shared memory: {first} (MPI: {second})"
    if not wins:
        told = f"MPI: {second} (shared memory: {first}; it must win both)"
    assert found == [(wins, told)] * 3


@needs_native
def test_shared_memory_is_measured_also_where_it_is_asked_for(tmp_path: Path) -> None:
    found = choose("shared", tmp_path)
    figures = r"8 KiB in [\d.]+ us and 1 MiB in [\d.]+ us"
    assert re.fullmatch(rf"shared memory, as asked for: {figures} \(MPI: {figures}\)", found[0][1])
    assert found == [found[0]] * 3
    assert found[0][0]


def test_mpi_where_it_is_asked_for_or_nothing_else_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("mpi", tmp_path) == [(False, "MPI, as asked for")] * 3
    told = "MPI, since there is no shared memory: the ranks are on 2 hosts"
    assert choose("auto", tmp_path, hosts=2) == [(False, told)] * 3
    monkeypatch.setattr("ollampi.mpiruntime.shared_memory.library", lambda: None)
    told = "MPI, since there is no shared memory: the native kernels were not built"
    assert choose("auto", tmp_path) == [(False, told)] * 3
    with pytest.raises(ConfigError, match=r"^exchange=shared cannot be had: the native kernels were not built; use"):
        choose("shared", tmp_path)


def test_a_world_of_one_has_nothing_to_exchange(tmp_path: Path) -> None:
    comm = Single()
    for wanted in ("auto", "shared", "mpi"):
        assert choose_exchange(comm, survey(comm), wanted, False, tmp_path) == Exchange(comm, "")


def test_the_sizes_measured_are_whole_numbers_of_floats() -> None:
    assert SMALL_BYTES % 4 == LARGE_BYTES % 4 == 0
