"""Heartbeats travel through MPI beside all work, and flipped bits of one rank are found on any world."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from support.checkpoints import write_checkpoint
from support.spoiling import Spoilt, examined, findings_of, flip, raw_bytes

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.decoder import Decoder
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.heartbeat import Heart
from ollampi.mpiruntime.meters import Meters
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.self_test import judged
from ollampi.mpiruntime.vitals import Activity, Vitals
from ollampi.mpiruntime.watchdog import Watchdog
from ollampi.mpiruntime.world import survey

pytestmark = pytest.mark.mpi
INTERVAL_S = 0.2


@pytest.fixture(scope="session")
def healthy(comm: Communicator, shared_folder: Path) -> Path:
    if comm.rank == 0:
        write_checkpoint(shared_folder / "healthy", head_dim=32)
    comm.collect(b"written")
    return shared_folder / "healthy"


@pytest.mark.parametrize("quantize", ["none", "q8", "q4"])
def test_flipped_bits_of_the_last_rank_are_found(comm: Communicator, healthy: Path, quantize: str) -> None:
    def spoil(decoder: Decoder) -> None:
        flip(next(raw_bytes(decoder.layers[0].parts()[1].tensors()[0])), 7, 3)

    before, after = examined(comm, healthy, spoil, comm.size - 1, quantize=quantize)
    assert before == [[]] * comm.size
    assert after == [[]] * (comm.size - 1) + [["the weights of layer 0 are not what was loaded: bad memory?"]]


def test_a_rank_that_gets_wrong_sums_is_found(comm: Communicator) -> None:
    last = comm.size - 1
    mine = Spoilt(comm, lambda x: x, lambda x: x + 1) if comm.rank == last else comm
    words = (
        "its part of a sum over ranks comes out wrong" if comm.size == 1 else "a sum over ranks comes out wrong here"
    )
    assert judged(findings_of(Runner(mine, survey(comm)), 0.0)) == [[]] * last + [[words]]


def test_beats_reach_rank_0_while_all_ranks_are_busy_with_sums(comm: Communicator) -> None:
    """Sums follow each other without a break until rank 0 has heard every rank several times."""
    assert isinstance(comm, Mpi)
    post = comm.post()
    assert post is not None
    health = Health(comm.size, INTERVAL_S, 60.0, 0) if comm.rank == 0 else None
    dog = Watchdog(post, ["here"] * comm.size, 300.0, lambda text: None, INTERVAL_S / 4)
    heard = [0] * comm.size

    def take(rank: int, beat: dict[str, object]) -> None:
        assert health is not None
        heard[rank] += 1
        health.take(rank, beat, time.monotonic())

    vitals = Vitals(Meters(comm, [], None), Activity(), dog.place)
    heart = Heart(INTERVAL_S, vitals, lambda beat: dog.tell(0, beat), health)
    dog.beside, dog.heard = heart.look, take
    dog.start()
    end, x, told = time.monotonic() + 60, torch.ones(1000), b""
    while not told:
        assert comm.all_reduce(x)[0] == comm.size
        enough = comm.rank == 0 and (min(heard[1:], default=3) >= 3 or time.monotonic() > end)
        told = comm.collect(b"enough" if enough else b"")[0]
    dog.stop()
    if health is not None:
        health.refresh = heart.look  # as in a world of one, where no thread looks
        assert min(heard[1:], default=3) >= 3
        nodes = health.nodes()
        assert [node.rank for node in nodes] == list(range(comm.size))
        for node in nodes:
            assert node.process_bytes is not None
            assert node.memory_total is not None
            assert 0 < node.process_bytes < node.memory_total
    comm.collect(b"all have stopped")
    post.receive()
