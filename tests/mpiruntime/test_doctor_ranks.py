"""What ranks measure for `ollampi doctor`, in worlds of threads; tests/mpi has the same over MPI."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from ollampi.mpiruntime import doctor_ranks, network_figures
from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.doctor_ranks import greeted, measured, pairs, silent_ranks
from ollampi.mpiruntime.doctor_words import MARK, SUM_BYTES, Wanted
from ollampi.mpiruntime.host_facts import PACKAGES, host_facts, parse_gpus
from ollampi.mpiruntime.shared_folder import measure_folder
from ollampi.mpiruntime.thread_world import ThreadCommunicator, run_threads

WORLDS = pytest.mark.parametrize("size", [1, 2, 3, 5])


def test_facts_of_a_host_are_plain_and_whole() -> None:
    facts = json.loads(json.dumps(host_facts(os.environ)))
    assert facts["host"] == socket.gethostname()
    assert 1 <= facts["usable_cores"] <= facts["cores"] <= facts["all_cores"]
    assert 0 < facts["memory_free"] <= facts["memory_total"]
    assert facts["packages"].keys() == set(PACKAGES)
    assert facts["packages"]["torch"] == torch.__version__
    assert 0 <= facts["shm_free"] <= facts["shm_total"]
    assert facts["ports"] > 0


def test_gpus_are_read_as_their_driver_lists_them() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559, 80994, 570.1\nNo devices were found\nNVIDIA L4, [N/A], 1, 570.1\n"
    gpus = [
        {"name": "NVIDIA H100 80GB HBM3", "memory_total": 81559 << 20, "memory_free": 80994 << 20, "driver": "570.1"}
    ]
    assert parse_gpus(text) == gpus
    assert parse_gpus("") == []


def test_a_host_without_the_drivers_program_has_no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host_facts({})["gpus"] == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'A, 10, 5, 1.2'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert [gpu["name"] for gpu in host_facts({})["gpus"]] == ["A"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert host_facts({})["gpus"] == []


@WORLDS
def test_a_shared_folder_is_written_and_read_and_nothing_is_left(tmp_path: Path, size: int) -> None:
    leaders = list(range(0, size, 2))
    told = run_threads(size, lambda comm: measure_folder(comm, tmp_path, leaders, 10_000_001))
    assert all(each == told[0] for each in told)
    assert len(told[0]) == len(leaders)
    assert all(found["write_s"] > 0 and found["read_s"] > 0 and found["free"] > 0 for found in told[0])
    assert list(tmp_path.iterdir()) == []


def test_hosts_that_see_different_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    told = run_threads(2, lambda comm: measure_folder(comm, tmp_path / str(comm.rank), [0, 1], 1000))
    assert all("No such file or directory" in found["error"] for found in told[0])
    told = run_threads(2, lambda comm: measure_folder(comm, tmp_path / str(2 * comm.rank), [0, 1], 1000))
    assert "error" not in told[0][0]
    assert str(tmp_path / "2") in told[0][1]["error"]
    assert [list((tmp_path / name).iterdir()) for name in ("0", "1")] == [[], []]


def told_by(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines = capfd.readouterr().out.splitlines()
    return [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]


@WORLDS
def test_rank_0_tells_all_that_was_wanted(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    monkeypatch.setattr(doctor_ranks, "FOLDER_BYTES", 1 << 20)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = Wanted(port=port, folder=str(tmp_path), model=str(tmp_path / "model"))
        run_threads(size, lambda comm: measured(comm, wanted))
    told = told_by(capfd)
    (hosts,) = [each for each in told if "ranks" in each]
    assert hosts["ranks"] == [socket.gethostname()] * size
    assert hosts["hosts"][0]["ranks"] == size
    assert hosts["port"] == "Address already in use"
    assert [each["sum"] for each in told if "sum" in each] == ([] if size == 1 else list(SUM_BYTES))
    assert len([each for each in told if "links" in each]) == (size > 1)
    assert [len(each["folder"]) for each in told if "folder" in each] == [1]
    assert [list(each["model"][0]) for each in told if "model" in each] == [[str(tmp_path / "model" / "config.json")]]
    assert told[-1] == {"end": True}


def test_a_free_port_and_a_model_that_is_not_there_are_told(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    measured(Single(), Wanted(port=0, model=str(tmp_path / "none")))
    told = told_by(capfd)
    assert next(each["port"] for each in told if "ranks" in each) == ""
    assert "No such file" in next(each["model"][0]["error"] for each in told if "model" in each)


@pytest.mark.parametrize("seconds", [-3.0, 0.0, 100.0])
def test_clocks_that_differ_are_seen_within_the_doubt(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    clock, late = network_figures.time, set[int]()
    monkeypatch.setattr(network_figures, "time", lambda: clock() + seconds * (threading.get_ident() in late))

    def work(comm: ThreadCommunicator) -> tuple[float, float]:
        link = comm.link(range(comm.size))
        assert link is not None
        if comm.rank == 2:
            late.add(threading.get_ident())
        return network_figures.ahead(link, 0, 2)

    ahead, doubt = run_threads(3, work)[0]
    assert abs(ahead - seconds) <= doubt + 1e-5  # what is left of a time in fp64


@pytest.mark.parametrize("hosts", [1, 2, 5, 33, 100])
def test_all_pairs_of_few_hosts_are_measured_and_each_of_many(hosts: int) -> None:
    found = pairs(range(hosts))
    assert all(first < second for first, second in found)
    assert len(set(found)) == len(found)
    assert {host for pair in found for host in pair} == (set(range(hosts)) if hosts > 1 else set())
    assert len(found) == (hosts * (hosts - 1) // 2 if hosts <= 32 else 2 * hosts - 3)


@pytest.mark.parametrize("size", [1, 2, 3, 128, 129, 1000])
def test_whoever_is_greeted_greets_back(size: int) -> None:
    greets = [set(greeted(rank, size)) for rank in range(size)]
    for rank, others in enumerate(greets):
        assert rank not in others
        assert all(rank in greets[other] for other in others)
    assert size == 1 or all(greets)


class FakeRequest:
    """A request that has passed or never does."""

    def __init__(self, passed: bool) -> None:
        self.passed = passed

    def Get_status(self) -> bool:
        return self.passed

    @staticmethod
    def Testall(requests: list[FakeRequest]) -> bool:
        return all(request.passed for request in requests)


@pytest.mark.parametrize("silent", [[], [2], [0, 3]])
def test_ranks_that_send_no_greeting_are_named(silent: list[int]) -> None:
    class World:
        """Rank 1 of 4."""

        Get_rank, Get_size = staticmethod(lambda: 1), staticmethod(lambda: 4)
        Isend = staticmethod(lambda buffer, other, tag: FakeRequest(True))
        Irecv = staticmethod(lambda buffer, other, tag: FakeRequest(other not in silent))

    class Mpi:
        """As much of mpi4py as is used."""

        COMM_WORLD, Request = World, FakeRequest

    assert silent_ranks(Mpi, 0.01) == silent
