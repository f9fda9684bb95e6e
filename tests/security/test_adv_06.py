"""Advisory 6: compressed answers of a registry that never end (CVE-2024-12886)."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("where", ["manifests", "blobs"])
def test_a_bomb(attacked, registry, where):
    registry.publish("library/bomb:latest", where.encode() * 1000)
    registry.fail(where, "gzip", 1 << 28, times=20)
    before = sum(path.stat().st_size for path in attacked.store.rglob("*") if path.is_file())
    try:
        assert "error" in attacked.pull(f"{registry.host}/library/bomb")[-1]
    finally:
        registry.faults.clear()
    after = sum(path.stat().st_size for path in attacked.store.rglob("*") if path.is_file())
    assert after < before + (1 << 20)
    assert attacked.pull(f"{registry.host}/library/bomb")[-1].get("error") is None
