"""A client that leaves ends its pull, also where it waits for the last line only."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from support.fronts import arguments, connect, running_front
from support.pulls import BIG
from support.registry import Registry, digest_of
from support.servers import wait_until

from ollampi.api.store.local import LocalStore
from ollampi.api.store.prune import KEEPING


@pytest.mark.parametrize("stream", [True, False])
def test_a_pull_whose_client_leaves_ends(registry: Registry, store: LocalStore, tmp_path: Path, stream: bool) -> None:
    registry.fail(digest_of(BIG), "stall", 1000, times=100)

    def leases() -> list[str]:
        folder = store.blobs.root
        return [name for name in os.listdir(folder) if name.startswith(KEEPING)] if folder.is_dir() else []

    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        more = {"store": str(store.root), "registries": [registry.url]}
        text = arguments(listener, "unix:@nobody", tmp_path, os.getpid(), **more)
        with running_front(listener, text, tmp_path):
            client = connect(listener)
            body = {"model": f"{registry.host}/library/m", "stream": stream, "insecure": True}
            client.request("POST", "/api/pull", json.dumps(body))
            wait_until(lambda: len(leases()) == 2, 10, "the pull")  # of all blobs, and of the one that stalls
            client.close()
            wait_until(lambda: not leases(), 20, "the end of the pull")  # which has 30 s for a byte, and six tries
        assert BIG not in [path.read_bytes() for path in store.blobs.root.iterdir() if path.is_file()]
