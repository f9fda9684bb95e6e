"""The server of a Slurm job takes another port where somebody has taken the one that it chose."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.fake_slurm import an_endpoint
from support.servers import free_port

from ollampi.launcher import endpoint, slurm_job
from ollampi.launcher.http_process import listen
from ollampi.launcher.keeper import Build, Keeping
from ollampi.launcher.mpi import Vendor
from ollampi.launcher.slurm_job import Job, Place, serve
from ollampi.launcher.slurm_nodes import Allocation, Node
from ollampi.launcher.slurm_site import Site, Way
from ollampi.mpiruntime.errors import ConfigError


@dataclass
class Made:
    """A job whose server opens its port and ends with 7; listened: the ports that it had; chosen: those to choose."""

    job: Job
    chosen: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    listened: list[int] = field(default_factory=list)
    closed: int = 0

    def choose(self, _host: str, wanted: int) -> int:
        self.wanted.append(wanted)
        return self.chosen.pop(0)

    def keep(self, _build: Build, keeping: Keeping) -> int:
        with listen(keeping.config) as listener:
            self.listened.append(listener.getsockname()[1])
        keeping.sent.add(10)
        return 7

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Return a job on this host that has an endpoint file."""
    place = Place("100", "127.0.0.1", tmp_path, None, None, "")
    allocated, site = Allocation((Node("n1", 1),), None), Site((Way.MPIRUN,), Vendor.OPEN_MPI, None)
    found = Made(Job(["model=demo"], {"server.port": 4711}, {}, allocated, site, place))
    monkeypatch.setattr(slurm_job, "free_port", found.choose)
    monkeypatch.setattr(slurm_job, "keep", found.keep)
    monkeypatch.setattr(slurm_job, "Output", lambda: found)
    endpoint.write(an_endpoint("100"), tmp_path)
    return found


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port at which somebody else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port()))
        other.listen(1)
        yield other.getsockname()[1]


def test_a_port_that_was_taken_meanwhile_is_given_up_for_another(made: Made, taken: int) -> None:
    free = free_port()
    made.chosen = [taken, taken, free]
    sent = set[int]()
    assert (serve(made.job, sent), sent) == (7, {10})
    assert (made.wanted, made.listened) == ([4711] * 3, [free])
    assert made.job.port == free  # of which the endpoint file tells
    assert f"server.port={free}" in made.job.settled()


def test_nothing_stays_where_all_ports_are_taken(made: Made, taken: int) -> None:
    made.chosen = [taken] * 20
    with pytest.raises(ConfigError, match="10 ports in turn were taken between the choice and the start; try again"):
        serve(made.job, set())
    assert (len(made.chosen), made.listened, made.closed) == (10, [], 1)
    assert endpoint.read(made.job.place.endpoints, "100") is None


def test_what_another_port_does_not_mend_is_told_at_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(_build: Build, _keeping: Keeping) -> int:
        raise ConfigError("no keys")

    monkeypatch.setattr(slurm_job, "keep", keep)
    made.chosen = [4711, 4712]
    with pytest.raises(ConfigError, match="no keys"):
        serve(made.job, set())
    assert (made.chosen, made.closed) == ([4712], 1)
    assert endpoint.read(made.job.place.endpoints, "100") is None
