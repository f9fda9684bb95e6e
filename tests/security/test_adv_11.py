"""Advisory 11: deletion of any file by a crafted name (CVE-2025-44779)."""

from __future__ import annotations

import pytest

NAMES = [
    *("../../x", "a/../../b", "host:99/../x", "..", ".", "/etc/passwd", "a/b/c/d", "x:../y", "x:..", "a\\..\\b", "x\0"),
    *("%2e%2e/x", "../manifests", "registry.ollama.ai/../x:y", "a//b", "x:", ":x", "x" * 1000),
]


@pytest.mark.parametrize("name", NAMES)
def test_names(attacked, name):
    canaries = [attacked.store.parent / "x", attacked.store / "x", attacked.store / "manifests" / "x"]
    for canary in canaries:
        canary.parent.mkdir(parents=True, exist_ok=True)
        canary.write_text("canary")
    for body in ({"model": name}, {"name": name}):
        status, answer = attacked.server.request("DELETE", "/api/delete", body)
        assert status == 400, answer
    for body in ({"source": name, "destination": "y"}, {"source": "demo", "destination": name}):
        status, answer = attacked.server.request("POST", "/api/copy", body)
        assert status == 400, answer
    assert attacked.post("/api/create", model=name, **{"from": "demo"})[0] == 400
    assert [canary.read_text() for canary in canaries] == ["canary"] * 3
