"""A way to start ranks is tried before a server needs it; another one is taken where it makes no world."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ollampi.launcher.mpi import Mpi, Vendor
from ollampi.launcher.slurm_nodes import Node
from ollampi.launcher.slurm_site import Site, Way
from ollampi.launcher.slurm_trial import check_trial, ways_that_work
from ollampi.mpiruntime.errors import WorldError

NODES = [Node("n1", 2), Node("n2", 1)]
ONE_WORLD = "world 3\\n" * 3


def program(folder: Path, name: str, told: str, status: int = 0) -> str:
    """Write a program that prints its arguments to a file beside it, and `told`; return its path."""
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$@" >> "$0.calls"\nprintf "{told}"\nexit {status}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Way], list[str]]]:
    """Return what tries the ways of a site whose srun and mpirun tell what they are told to."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    said: list[str] = []

    def tries(ways: tuple[Way, ...], srun: str, mpirun: str = ONE_WORLD) -> tuple[list[Way], list[str]]:
        program(tmp_path, "srun", srun)
        found = Mpi(program(tmp_path, "mpirun", mpirun), Vendor.OPEN_MPI, (5, 0))
        environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return ways_that_work(Site(ways, Vendor.OPEN_MPI, found), NODES, 2, lambda way: environ, said.append), said

    return tries


def test_the_first_way_is_kept_where_it_makes_one_world(
    tmp_path: Path, tried: Callable[..., tuple[list[Way], list[str]]]
) -> None:
    assert tried((Way.PMIX, Way.MPIRUN), ONE_WORLD) == ([Way.PMIX, Way.MPIRUN], [])
    called = (tmp_path / "srun.calls").read_text()
    assert "--mpi=pmix" in called
    assert "--nodelist=n1,n1,n2 --cpus-per-task=2" in called
    assert sys.executable in called
    assert not (tmp_path / "mpirun.calls").exists()


def test_another_way_is_taken_where_the_first_makes_worlds_of_one(
    tried: Callable[..., tuple[list[Way], list[str]]],
) -> None:
    ways, said = tried((Way.PMIX, Way.MPIRUN), "world 1\\n" * 3)
    assert ways == [Way.MPIRUN]
    assert len(said) == 1
    assert "srun --mpi=pmix started 3 worlds of one rank each" in said[0]
    assert said[0].endswith("; trying mpirun")


def test_a_way_that_is_the_only_one_is_taken_as_it_is(
    tmp_path: Path, tried: Callable[..., tuple[list[Way], list[str]]]
) -> None:
    assert tried((Way.MPIRUN,), "", "no world") == ([Way.MPIRUN], [])  # whose own message is the better one
    assert not (tmp_path / "mpirun.calls").exists()


def test_where_no_way_makes_a_world_the_last_is_told(tried: Callable[..., tuple[list[Way], list[str]]]) -> None:
    with pytest.raises(WorldError, match="with mpirun ended with status 0: no slots; choose another way"):
        tried((Way.PMIX, Way.MPIRUN), "", "no slots")
    with pytest.raises(WorldError, match="with srun --mpi=pmix ended with status 0"):
        tried((Way.PMIX,), "")


def test_a_trial_is_good_that_made_one_world_of_all_ranks() -> None:
    told = "world 2\nsome notice\nworld 2\n"
    check_trial(Way.PMIX, 0, told, 2)
    with pytest.raises(WorldError, match="srun --mpi=pmix"):
        check_trial(Way.PMIX, 0, told, 3)


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (0, "world 1\nworld 1\n", "srun --mpi=pmix started 2 worlds of one rank each"),
        (None, "", "did not end in time"),
        (16, "\n  unsupported PMI version\nworld 2\n", "ended with status 16: unsupported PMI version"),
        (0, "world 2\n", "ended with status 0"),
    ],
)
def test_a_trial_that_did_not_is_told_with_the_remedy(status: int | None, text: str, told: str) -> None:
    with pytest.raises(WorldError, match=f"{told}.*OLLAMPI_SLURM_MPI"):
        check_trial(Way.PMIX, status, text, 2)
