"""Give the manifests and blobs of the store to other servers, read-only, as a registry does.

The routes are GET and HEAD of /v2/, /v2/NAMESPACE/MODEL/manifests/TAG and /v2/NAMESPACE/MODEL/blobs/DIGEST; `ns` in the
query names the registry that a model came from, where it is not the default one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

from flask import Response

from ollampi.api.errors import ApiError
from ollampi.api.names import DEFAULT_HOST, parse_name
from ollampi.api.store.digest import parse_digest
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import MANIFEST_TYPE
from ollampi.mpiruntime.errors import ModelError

_SEND_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def serve_manifest(store: LocalStore, repository: str, tag: str, mirrored: str | None = None) -> Response:
    """Return a model's manifest; 404 where there is none, and where it is damaged."""
    name = parse_name(f"{mirrored or DEFAULT_HOST}/{repository}:{tag}")
    try:
        manifest = store.read(name) if name is not None else None
    except ModelError:
        manifest = None
    if manifest is None:
        return _unknown("MANIFEST_UNKNOWN")
    headers = {"Docker-Content-Digest": manifest.digest}
    return Response(manifest.encode(), 200, headers, content_type=MANIFEST_TYPE)


def serve_blob(store: LocalStore, digest_text: str, range_header: str | None = None) -> Response:
    """Return a blob, or a run of its bytes with status 206; 404 where there is none, 416 beyond its end.

    At most 1 MiB of it is in memory.
    """
    try:
        digest = parse_digest(digest_text)
        fd = os.open(store.blobs.path(digest), os.O_RDONLY | os.O_CLOEXEC)
    except (ApiError, OSError):
        return _unknown("BLOB_UNKNOWN")
    size = os.fstat(fd).st_size
    start, stop, is_part = _asked(range_header, size)
    headers = {"Accept-Ranges": "bytes", "Docker-Content-Digest": str(digest)}
    if start >= stop and is_part:
        os.close(fd)
        return Response("", 416, {**headers, "Content-Range": f"bytes */{size}"})
    if is_part:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    return Response(
        _Region(fd, start, stop),
        206 if is_part else 200,
        headers,
        content_type="application/octet-stream",
    )


class _Region:
    """The bytes of an open file from `start` to `stop`; whoever takes them closes it."""

    def __init__(self, fd: int, start: int, stop: int) -> None:
        self._fd, self._start, self._stop = fd, start, stop

    def __iter__(self) -> Iterator[bytes]:
        while self._start < self._stop:
            data = os.pread(self._fd, min(_SEND_BYTES, self._stop - self._start), self._start)
            if not data:  # the file was cut: the client sees an answer that is too short
                return
            self._start += len(data)
            yield data

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def _asked(header: str | None, size: int) -> tuple[int, int, bool]:
    """Return the first byte that was asked for, the one behind the last, and whether a single range was given.

    Several ranges, and what is no range of bytes, count as none, as RFC 9110 allows.
    """
    found = _RANGE.fullmatch((header or "").strip().replace(" ", ""))
    if found is None or found[0] == "bytes=-":
        return 0, size, False
    if not found[1]:
        return max(0, size - int(found[2])), size, True
    start = int(found[1])
    if found[2] and int(found[2]) < start:
        return 0, size, False
    return start, min(size, int(found[2]) + 1) if found[2] else size, True


def _unknown(code: str) -> Response:
    """Return a 404 in the words of the registry protocol."""
    body = json.dumps({"errors": [{"code": code, "message": "not found", "detail": None}]})
    return Response(body, 404, content_type="application/json")
