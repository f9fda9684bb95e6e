"""Two real server processes: one gives its store, the other pulls from it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.fronts import arguments, connect, running_front
from support.pulls import BIG, SMALL, Pull, bytes_of, named
from support.registry import Registry, digest_of

from ollampi.api.store.digest import parse_digest
from ollampi.api.store.local import LocalStore


@pytest.fixture
def copy(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "copy")


@pytest.fixture
def servers(store: LocalStore, copy: LocalStore, pulled: Pull, tmp_path: Path) -> Iterator[list[socket.socket]]:
    """The sockets of a server of `store`, and of one of `copy` that may contact the first."""
    pulled()
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        first = f"127.0.0.1:{listeners[0].getsockname()[1]}"
        for listener, root, registries in zip(listeners, (store.root, copy.root), ([], [first]), strict=True):
            os.set_inheritable(listener.fileno(), True)
            more: dict[str, Any] = {"store": str(root), "registries": registries}
            text = arguments(listener, "unix:@nobody", tmp_path, os.getpid(), **more)
            stack.enter_context(running_front(listener, text, tmp_path))
        yield listeners


def post(listener: socket.socket, path: str, **body: Any) -> tuple[int, list[dict[str, Any]]]:
    """Return the status and the lines of an answer."""
    connection = connect(listener)
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    lines = [json.loads(line) for line in response.read().splitlines()]
    connection.close()
    return response.status, lines


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_store_spreads(registry: Registry, servers: list[socket.socket], copy: LocalStore) -> None:
    first, second = servers
    name = f"{registry.host}/library/m"
    status, lines = post(second, "/api/pull", model=name, **{"from": url_of(first)})
    assert status == 200
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[-1] == {"status": "success"}
    assert any(line.get("digest") == digest_of(BIG) and line.get("completed") == len(BIG) for line in lines)
    assert bytes_of(copy, name) == [BIG, SMALL]
    assert post(second, "/api/pull", model=name, stream=False, **{"from": url_of(first)}) == (
        200,
        [{"status": "success"}],
    )


def test_a_damaged_blob_is_repaired_from_a_neighbour(
    registry: Registry, servers: list[socket.socket], copy: LocalStore
) -> None:
    first, second = servers
    name = f"{registry.host}/library/m"
    post(second, "/api/pull", model=name, **{"from": url_of(first)})
    path = copy.blobs.path(parse_digest(digest_of(BIG)))
    path.write_bytes(bytes(len(BIG)))
    assert post(second, "/api/pull", model=name, **{"from": url_of(first)})[1][-1] == {"status": "success"}
    assert path.read_bytes() == BIG


def test_what_goes_wrong_is_one_error(registry: Registry, servers: list[socket.socket], copy: LocalStore) -> None:
    first, second = servers
    unknown = {"model": "unknown", "from": url_of(first)}
    error = {"error": "pull model manifest: file does not exist"}
    assert post(second, "/api/pull", **unknown) == (200, [{"status": "pulling manifest"}, error])
    assert post(second, "/api/pull", **unknown, stream=False) == (500, [error])
    status, lines = post(first, "/api/pull", model="m", stream=False, **{"from": url_of(second)})  # not listed there
    assert status == 403
    assert lines[0]["error"].startswith("pull model manifest: ")
    assert not copy.names()


def test_a_client_that_leaves_ends_the_pull(registry: Registry, servers: list[socket.socket], copy: LocalStore) -> None:
    name = named(f"{registry.host}/library/m")
    connection = connect(servers[1])
    connection.request("POST", "/api/pull", json.dumps({"model": name.full, "from": url_of(servers[0])}))
    response = connection.getresponse()
    assert json.loads(response.readline()) == {"status": "pulling manifest"}
    response.close()
    connection.close()
    assert list(post(servers[1], "/api/pull", model=name.full, **{"from": url_of(servers[0])})[1])[-1] == {
        "status": "success"
    }
    assert bytes_of(copy, name.short) == [BIG, SMALL]
