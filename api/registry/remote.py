"""Speak the registry protocol: manifests, blobs and uploads of one repository.

The routes are those of https://github.com/opencontainers/distribution-spec/blob/main/spec.md, which Ollama's registry
has under /v2/NAMESPACE/MODEL. `ns` names the registry that a mirror stands for, as containerd asks its mirrors.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from urllib.parse import quote

from urllib3 import BaseHTTPResponse

from ollampi.api.errors import ApiError
from ollampi.api.registry.hosts import Origin, joined
from ollampi.api.registry.tokens import MAX_TOKEN_BYTES, Nobody, Tokens
from ollampi.api.registry.transfer import TransientError
from ollampi.api.registry.web import Credentials, RefusedError, Request, Web, bounded, discard
from ollampi.api.store.digest import Digest
from ollampi.api.store.manifest import MANIFEST_TYPE, MAX_MANIFEST_BYTES, OCI_MANIFEST_TYPE

_EXPIRED = (400, 401, 403, 404, 410)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)
_RECEIVED = re.compile(r"(?:bytes=)?0-(\d+)", re.ASCII)


class RangeIgnoredError(Exception):
    """The server gives files only whole."""


class RemoteFile:
    """A file of known size that a server gives in pieces; safe to use from several threads."""

    def __init__(self, web: Web, url: str, credentials: Credentials, what: str, size: int) -> None:
        self._web, self._url, self._credentials = web, url, credentials
        self.what, self.size = what, size
        self._direct = url  # where the last redirect led: asking there again saves a request for each piece
        self._lock = threading.Lock()

    def piece(self, start: int, stop: int) -> BaseHTTPResponse:
        """Return an answer whose body is the bytes from `start` to `stop`.

        Raise RangeIgnoredError where only the whole file can be had, TransientError and ApiError as Web.send does.
        """
        response = self._send({"Range": f"bytes={start}-{stop - 1}"})
        if response.status == 200:
            response.close()
            raise RangeIgnoredError
        told = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        expected = (start, stop - 1, self.size)
        if response.status != 206 or told is None or tuple(map(int, told.groups())) != expected:
            response.close()
            raise ApiError(500, f"{self.what} came with other bytes than asked for; pull again, or tell the registry")
        return self._sized(response, stop - start)

    def whole(self) -> BaseHTTPResponse:
        """Return an answer whose body is the whole file; raise TransientError and ApiError."""
        return self._sized(self._send({}), self.size)

    def _sized(self, response: BaseHTTPResponse, size: int) -> BaseHTTPResponse:
        """Return the answer unless it announces another size than it must have."""
        told = response.headers.get("Content-Length", str(size))
        if told != str(size):
            response.close()
            raise ApiError(500, f"{self.what} has {told[:20]} bytes where {size} were announced; pull again")
        return response

    def _send(self, headers: dict[str, str]) -> BaseHTTPResponse:
        with self._lock:
            url = self._direct
        try:
            response, final = self._web.send(Request("GET", url, headers), self._credentials)
        except RefusedError as e:
            with self._lock:
                self._direct = self._url
            if url != self._url and e.code in _EXPIRED:
                raise TransientError(f"the redirect of {self.what} has expired") from e
            raise ApiError(500, f"{self.what} cannot be had: {e}") from e
        with self._lock:
            self._direct = final
        return response


class Remote:
    """One repository of one registry; safe to use from several threads."""

    def __init__(self, web: Web, origin: Origin, repository: str, mirrored: str | None = None) -> None:
        self._web, self.origin = web, origin
        self._base = f"{origin}/v2/{quote(repository)}"
        self._query = f"?ns={quote(mirrored, safe='')}" if mirrored else ""
        self._credentials = Tokens(origin, self._token_at)

    def manifest(self, tag: str) -> bytes:
        """Return the bytes of a manifest; raise TransientError and ApiError, RefusedError too."""
        accepted = f"{MANIFEST_TYPE}, {OCI_MANIFEST_TYPE}"
        request = Request("GET", f"{self._base}/manifests/{quote(tag)}{self._query}", {"Accept": accepted})
        return bounded(self._send(request), MAX_MANIFEST_BYTES, "the manifest")

    def blob(self, digest: Digest, size: int) -> RemoteFile:
        """Return a blob to read."""
        url = f"{self._base}/blobs/{digest}{self._query}"
        return RemoteFile(self._web, url, self._credentials, f"blob {digest}", size)

    def has(self, digest: Digest) -> bool:
        """Return whether the registry has a blob; raise TransientError and ApiError."""
        try:
            discard(self._send(Request("HEAD", f"{self._base}/blobs/{digest}")))
        except RefusedError as e:
            if e.code == 404:
                return False
            raise
        return True

    def start_upload(self) -> str:
        """Return the URL that takes the bytes of a new blob; raise TransientError and ApiError."""
        response = self._send(Request("POST", f"{self._base}/blobs/uploads/", {"Content-Length": "0"}))
        discard(response)
        return self._place(f"{self._base}/blobs/uploads/", response)

    def upload_piece(self, url: str, start: int, stop: int, body: Iterable[bytes]) -> str:
        """Send the bytes from `start` to `stop`; return the URL for the next; raise TransientError and ApiError."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(stop - start),
            "Content-Range": f"{start}-{stop - 1}",
        }
        response = self._send(Request("PATCH", url, headers, body))
        discard(response)
        return self._place(url, response)

    def uploaded(self, url: str) -> tuple[int, str]:
        """Return how many bytes an upload has, and the URL for the next; raise TransientError and ApiError."""
        response = self._send(Request("GET", url, is_redirected=False))
        discard(response)
        told = _RECEIVED.fullmatch(response.headers.get("Range", ""))
        return (int(told[1]) + 1 if told else 0), self._place(url, response)

    def finish_upload(self, url: str, digest: Digest) -> None:
        """Have the registry keep the bytes under their digest; raise TransientError and ApiError."""
        target = f"{url}{'&' if '?' in url else '?'}digest={quote(digest, safe='')}"
        discard(self._send(Request("PUT", target, {"Content-Length": "0"}, is_redirected=False)))

    def put_manifest(self, tag: str, data: bytes) -> None:
        """Give a tag its manifest; raise TransientError and ApiError."""
        headers = {"Content-Type": MANIFEST_TYPE}
        discard(self._send(Request("PUT", f"{self._base}/manifests/{quote(tag)}", headers, data)))

    def _send(self, request: Request) -> BaseHTTPResponse:
        return self._web.send(request, self._credentials)[0]

    def _token_at(self, url: str) -> bytes:
        """Return what the registry's token endpoint says."""
        response, _ = self._web.send(Request("GET", url, is_redirected=False), Nobody())
        return bounded(response, MAX_TOKEN_BYTES, "the token")

    def _place(self, url: str, response: BaseHTTPResponse) -> str:
        """Return where an upload goes on; the answer may name another place, of whatever host may be contacted."""
        return joined(url, response.headers.get("Location", url))
