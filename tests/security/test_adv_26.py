"""Advisory 26: a grammar cache on disk that grows without bounds (GHSA-mgrm-fgjv-mhv8)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COUNT = 10_000 if os.environ.get("OLLAMPI_LONG_TESTS") else 1_000


def written_bytes(pids: list[int]) -> int:
    """Return what processes had the kernel write to devices, by /proc/PID/io."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/io").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))


def test_many_schemas(attacked):
    def ask(number: int) -> int:
        form = {"type": "object", "properties": {f"key{number}": {"type": "integer"}}, "required": [f"key{number}"]}
        return attacked.post("/api/generate", prompt="x", format=form, options={"num_predict": 1})[0]

    before = written_bytes(attacked.server.processes())
    with ThreadPoolExecutor(16) as pool:
        statuses = set(pool.map(ask, range(COUNT)))
    assert statuses == {200}
    assert written_bytes(attacked.server.processes()) < before + (1 << 20)
