"""A server of ours gives its store to others: the real routes behind a real WSGI server, pulled by the real client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from support.pulls import BIG, QUICK, SMALL, Pull, bytes_of, named
from support.registry import Registry, digest_of
from werkzeug.serving import make_server

from ollampi.api.errors import ApiError
from ollampi.api.registry.pull import pull
from ollampi.api.registry.serving import serve_blob, serve_manifest
from ollampi.api.registry.transfer import TransferOptions
from ollampi.api.store.digest import parse_digest
from ollampi.api.store.local import LocalStore


def app_of(store: LocalStore) -> Flask:
    app = Flask(__name__, static_folder=None)

    @app.get("/v2/<path:repository>/manifests/<tag>")
    def manifest(repository: str, tag: str) -> Any:
        return serve_manifest(store, repository, tag, request.args.get("ns"))

    @app.get("/v2/<path:repository>/blobs/<digest>")
    def blob(repository: str, digest: str) -> Any:
        return serve_blob(store, digest, request.headers.get("Range"))

    return app


@pytest.fixture
def server(store: LocalStore) -> Iterator[str]:
    """The URL of a server that gives `store`."""
    server = make_server("127.0.0.1", 0, app_of(store), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def copy(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "copy")


def test_a_store_spreads(registry: Registry, store: LocalStore, pulled: Pull, server: str, copy: LocalStore) -> None:
    pulled()
    options = TransferOptions(registries=(server,), source=server, limits=QUICK)
    name = named(f"{registry.host}/library/m")
    assert list(pull(copy, name, options))[-1] == {"status": "success"}
    assert bytes_of(copy, name.short) == [BIG, SMALL]
    source = store.read(name)
    assert source is not None
    assert copy.read(name) == source
    with pytest.raises(ApiError, match=r"^pull model manifest: file does not exist$"):
        list(pull(copy, named("library/m"), options))  # of the default registry: another model


def test_a_damaged_blob_does_not_spread(
    registry: Registry, store: LocalStore, pulled: Pull, server: str, copy: LocalStore
) -> None:
    pulled()
    store.blobs.path(parse_digest(digest_of(BIG))).write_bytes(bytes(len(BIG)))
    options = TransferOptions(registries=(server,), source=server, limits=QUICK)
    with pytest.raises(ApiError, match="digest mismatch"):
        list(pull(copy, named(f"{registry.host}/library/m"), options))
    assert not copy.names()


RANGES = [
    (None, 200, BIG),
    ("bytes=0-0", 206, BIG[:1]),
    ("bytes=5-9", 206, BIG[5:10]),
    ("bytes=5-", 206, BIG[5:]),
    ("bytes=-5", 206, BIG[-5:]),
    (f"bytes=-{len(BIG) + 5}", 206, BIG),
    (f"bytes=3-{len(BIG) + 5}", 206, BIG[3:]),
    (f"bytes={len(BIG)}-", 416, b""),
    ("bytes=-0", 416, b""),
    ("bytes=9-5", 200, BIG),
    ("bytes=-", 200, BIG),
    ("bytes=0-1,5-6", 200, BIG),
    ("lines=0-1", 200, BIG),
    ("bytes=\u0663-", 200, BIG),
    ("bytes=" + "9" * 30 + "-", 200, BIG),
]


@pytest.mark.parametrize(("header", "status", "body"), RANGES, ids=range(len(RANGES)))
def test_ranges(store: LocalStore, header: str | None, status: int, body: bytes) -> None:
    digest = store.blobs.put([BIG])
    response = serve_blob(store, digest, header)
    assert response.status_code == status
    assert b"".join(response.response) == body  # type: ignore[arg-type]
    assert response.headers["Content-Length"] == str(len(body))
    if status == 206:
        start = BIG.index(body)
        assert response.headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/{len(BIG)}"
    response.close()


def test_a_head_has_no_body(store: LocalStore) -> None:
    digest = store.blobs.put([SMALL])
    answer = app_of(store).test_client().head(f"/v2/library/m/blobs/{digest}")
    assert (answer.status_code, answer.data, answer.headers["Content-Length"]) == (200, b"", str(len(SMALL)))


BAD_DIGESTS = ["x", "sha256:../../x", "sha256:" + "0" * 64, "sha256-" + "0" * 63 + "/", "\0", "..", "x" * 10000]


@pytest.mark.parametrize("digest", BAD_DIGESTS, ids=range(len(BAD_DIGESTS)))
def test_a_blob_that_is_not_there(store: LocalStore, digest: str) -> None:
    assert serve_blob(store, digest).status_code == 404


@pytest.mark.parametrize("repository", ["library/m", "m", "a/b/c", "../m", "library/..", "", "\0/m"])
@pytest.mark.parametrize("tag", ["latest", "..", "", "x" * 1000])
@pytest.mark.parametrize("mirrored", [None, "hf.co", "..", "a/b"])
def test_a_manifest_that_is_not_there(store: LocalStore, repository: str, tag: str, mirrored: str | None) -> None:
    answer = serve_manifest(store, repository, tag, mirrored)
    assert answer.status_code == 404


def test_a_damaged_manifest_is_not_there(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    pulled()
    path = store.path(named(f"{registry.host}/library/m"))
    assert path is not None
    path.write_text("{")
    assert serve_manifest(store, "library/m", "latest", registry.host).status_code == 404


def test_no_file_stays_open(store: LocalStore) -> None:
    digest = store.blobs.put([BIG])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        response = serve_blob(store, digest, "bytes=0-100")
        next(iter(response.response))
        response.close()
        serve_blob(store, digest).close()
        app_of(store).test_client().head(f"/v2/library/m/blobs/{digest}")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
