"""Advisory 1: digests that are paths (CVE-2024-37032) reach no file, in requests and in manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

HEX = "a" * 64
DIGESTS = [
    *(
        "sha256:../../x",
        f"sha256-{HEX}/../x",
        f"sha256:{HEX[:63]}",
        "sha256:%2e%2e%2f%2e%2e%2fx",
        "sha256:" + "a" * 10_000,
    ),
    *(
        f"sha256:{HEX}\0",
        f"sha256:{HEX[:-1]}/",
        f"sha256:{HEX[:-1]}g",
        f"md5:{HEX}",
        "",
        "sha256:",
        "../x",
        "/etc/passwd",
    ),
]


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("digest", DIGESTS)
def test_requests(attacked, digest):
    before = files(attacked.store.parent)
    path = "/api/blobs/" + "".join(
        char if char.isalnum() or char in "/.:-%" else f"%{ord(char):02x}" for char in digest
    )
    for method in ("HEAD", "POST"):
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1\r\n\r\n"
        status = attacked.raw(head.encode() + b"x").split(b" ")[1]
        assert status in (b"400", b"404", b"414"), (method, status)
        assert status == b"400" or not digest or digest[0] == "/" or len(digest) > 4096, (method, status)
    assert files(attacked.store.parent) == before


@pytest.mark.parametrize("digest", [digest for digest in DIGESTS if digest])
def test_manifests(attacked, registry, digest):
    before = files(attacked.store.parent)
    registry.put_manifest(
        "library/evil:latest", [{"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 1}]
    )
    lines = attacked.pull(f"{registry.host}/library/evil")
    assert lines[-1]["error"].startswith("pull model manifest: ")
    assert files(attacked.store.parent) == before
