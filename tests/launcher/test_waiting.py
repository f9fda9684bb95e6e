"""Threads that outnumber the cores sleep while they wait."""

import os

import pytest

from ollampi.launcher.waiting import local_size, waiting

PASSIVE = {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize(
    ("overrides", "ranks", "environ", "added"),
    [
        (["threads=4"], 1, {}, {}),
        (["threads=5"], 1, {}, PASSIVE),
        (["threads=2"], 2, {}, {}),
        (["threads=2"], 3, {}, PASSIVE),
        (["threads=1"], 8, {}, {}),  # no thread waits for another one of its rank
        (["threads=null"], 8, {}, {}),
        ([], 8, {}, {}),
        (["threads=8"], 8, {"OMP_WAIT_POLICY": "active"}, {}),
        (["threads=8"], 8, {"GOMP_SPINCOUNT": "5"}, {}),
        (["threads=x"], 8, {}, {}),
    ],
)
def test_the_policy(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], ranks: int, environ: dict[str, str], added: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert waiting(overrides, ranks, environ) == added


def test_mpirun_says_how_many_ranks_are_here() -> None:
    assert local_size({}) == local_size({"OMPI_COMM_WORLD_LOCAL_SIZE": ""}) == 1
    assert local_size({"OMPI_COMM_WORLD_LOCAL_SIZE": "3"}) == local_size({"MPI_LOCALNRANKS": "3"}) == 3
