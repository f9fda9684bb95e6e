"""What ranks measure for `ollampi doctor`, in a real world: all greet each other, and rank 0 has all figures."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from mpi4py import MPI

from ollampi.mpiruntime import doctor_ranks
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.doctor_words import MARK, SUM_BYTES, Wanted

LIMIT_S = 120.0


@pytest.mark.mpi
def test_all_ranks_hear_each_other(comm: Communicator) -> None:
    comm.collect(b"")
    assert doctor_ranks.silent_ranks(MPI, LIMIT_S) == []
    comm.collect(b"")


@pytest.mark.mpi
def test_rank_0_tells_links_sums_and_the_folder_and_the_others_nothing(
    comm: Communicator, shared_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_ranks, "FOLDER_BYTES", 1 << 20)
    doctor_ranks.measured(comm, Wanted(LIMIT_S, port=0, folder=str(shared_folder)))
    lines = capfd.readouterr().out.splitlines()
    told = [json.loads(line.partition(MARK)[2]) for line in lines if MARK in line]
    if comm.rank:
        assert told == []
        return
    here = socket.gethostname()
    assert next(each["ranks"] for each in told if "ranks" in each) == [here] * comm.size
    links = [each["links"] for each in told if "links" in each]
    assert [[link[:2] for link in each] for each in links] == ([[[here, here]]] if comm.size > 1 else [])
    assert all(seconds > 0 and rate > 0 for each in links for _, _, seconds, rate in each)
    assert [each["sum"] for each in told if "sum" in each] == (list(SUM_BYTES) if comm.size > 1 else [])
    assert told[-1] == {"end": True}
