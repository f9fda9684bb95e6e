"""One server of 2 ranks for all advisories, and a check after each test that it came through unharmed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.attacks import TOOLS, Attacked, with_template
from support.registry import Registry, running_registry
from support.servers import DEMO, server

from ollampi.mpiruntime.gguf_convert import convert


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Return a registry on loopback that the server may use; what it serves and how it fails is up to each test."""
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the demo model as a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "demo.gguf"
    convert(DEMO, path, lambda done, total: None)
    return path.read_bytes()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Attacked]:
    """Return the server, warmed up."""
    folder = tmp_path_factory.mktemp("attacked")
    models, store = folder / "models", folder / "store"
    with_template(models, "caller", TOOLS)
    settings = [f"model_folders={models}", f"store={store}", f"server.registries=[{registry.host}]"]
    with server(2, folder, *settings) as started:
        answer = started.generate("import os\n", 8)
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        body = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "format": schema, "stream": False}
        assert started.request("POST", "/api/chat", body | {"options": {"num_predict": 4}})[0] == 200
        assert started.request("POST", "/api/embed", {"model": "demo", "input": ["x"] * 16})[0] == 200
        yield Attacked(started, started.ranks(), 0, store, answer)


@pytest.fixture
def attacked(running: Attacked) -> Iterator[Attacked]:
    """Return the server; after the test it must be what it was before."""
    running.before = running.holds()
    running.resident_kib = sum(running.before.values())
    yield running
    running.check()
