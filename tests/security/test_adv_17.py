"""Advisory 17: a full disk in a pull leaves the store broken (ollama 1731): one line, and the next pull works."""

from __future__ import annotations

import os
import random
import subprocess

import pytest
from support.registry import running_registry
from support.servers import server

MIB = 1 << 20
SMALL, LARGE = random.Random(1).randbytes(20 * MIB), random.Random(2).randbytes(100 * MIB)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]).returncode:
        pytest.skip("mounting a file system of 64 MiB needs root and a kernel that lets it")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_full(small_disk, tmp_path):
    with running_registry(tmp_path / "registry") as registry:
        registry.publish("library/large:latest", LARGE)
        registry.publish("library/small:latest", SMALL)
        settings = [f"store={small_disk}/store", f"server.registries=[{registry.host}]"]
        with server(0, tmp_path, *settings) as running:
            body = {"insecure": True, "stream": False}
            status, answer = running.request("POST", "/api/pull", {"model": f"{registry.host}/library/large", **body})
            assert status >= 400
            assert "no space left" in answer["error"]
            filler = small_disk / "filler"
            filler.write_bytes(bytes(50 * MIB))
            status, answer = running.request("POST", "/api/pull", {"model": f"{registry.host}/library/small", **body})
            assert status >= 400
            assert "no space left" in answer["error"]
            filler.unlink()
            status, answer = running.request("POST", "/api/pull", {"model": f"{registry.host}/library/small", **body})
            assert (status, answer) == (200, {"status": "success"})
            assert running.generate("import os\n", 2)
