"""Give the tests of real clients a real server of 2 ranks, with the demo model and a store that can be written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.registry import running_registry
from support.servers import Server, server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the server's store, which is empty at first."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def loopback_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a registry that the server may use."""
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry.host


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, models: Path, loopback_registry: str) -> Iterator[Server]:
    """Return a running server; its store is where OLLAMA_MODELS says."""
    settings = ["engine.context_length=512", "dtype=float32", f"server.registries=[{loopback_registry}]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_MODELS", str(models))
        with server(2, tmp_path_factory.mktemp("server"), *settings) as running:
            yield running


@pytest.fixture(scope="module")
def url(job: Server) -> str:
    """Return the address of the server."""
    return f"http://127.0.0.1:{job.port}"
