"""Advisory 9: crafted manifests (CVE-2025-1975) end a pull with one clear line."""

from __future__ import annotations

from typing import Any

import pytest

MODEL = "application/vnd.ollama.image.model"


def layer(**more: Any) -> dict[str, Any]:
    return {"mediaType": MODEL, "digest": "sha256:" + "b" * 64, "size": 5, **more}


MANIFESTS: dict[str, Any] = {
    "no layers": [],
    "many layers": [layer(digest=f"sha256:{number:064x}") for number in range(10_000)],
    "no list": {"a": 1},
    "null": None,
    "numbers": [1, 2],
    "negative": [layer(size=-5)],
    "huge": [layer(size=2**63)],
    "fraction": [layer(size=1.5)],
    "text": [layer(size="5")],
    "type": [layer(mediaType=5)],
    "twice": [layer(), layer(size=6)],
    "empty": [{}],
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests(attacked, registry, kind):
    registry.put_manifest("library/odd:latest", MANIFESTS[kind])
    last = attacked.pull(f"{registry.host}/library/odd")[-1]
    assert last["error"]
    assert "odd" not in str(attacked.server.request("GET", "/api/tags")[1])


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"layers":5}', b" " * (5 << 20)]
)
def test_what_is_no_manifest(attacked, registry, data):
    registry.manifests["library/odd:latest"] = data
    assert attacked.pull(f"{registry.host}/library/odd")[-1]["error"].startswith("pull model manifest: ")
