"""Give each test the communicator of the world, and let ranks agree on every outcome."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.mpi import launched_size, start


def pytest_configure(config: pytest.Config) -> None:
    """Let only rank 0 report; the outcome of a test is agreed on, so it speaks for all."""
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "0"
    if rank != "0" and config.pluginmanager.hasplugin("terminalreporter"):
        config.pluginmanager.unregister(name="terminalreporter")


def pytest_report_header() -> str:
    """Return the size of the world."""
    return f"world of {os.environ.get('OLLAMPI_TEST_SIZE', '1')} ranks"


@pytest.fixture(scope="session")
def comm() -> Communicator:
    """Return the communicator of all ranks; its size is the one that was asked for."""
    size = int(os.environ["OLLAMPI_TEST_SIZE"])
    assert launched_size(os.environ) == size
    return start(size)


@pytest.fixture(scope="session")
def shared_folder(comm: Communicator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder that all ranks see."""
    mine = str(tmp_path_factory.mktemp("shared")) if comm.rank == 0 else ""
    return Path(comm.collect(mine.encode())[0].decode())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test on all ranks where it fails on one, so that all go on to the same next test."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as e:
        error = e
    world = item.funcargs.get("comm") if isinstance(item, pytest.Function) else None
    if world is not None:
        told = world.collect(str(error).encode()[:2000] if error else b"")
        failed = [f"rank {rank}: {text.decode()}" for rank, text in enumerate(told) if text]
        if failed and error is None:
            pytest.fail("; ".join(failed), pytrace=False)
    if error is not None:
        raise error
