"""The routes of the registry on loopback, with the faults that it was told to have."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


@functools.cache
def zeros_compressed(num_bytes: int) -> bytes:
    return gzip.compress(bytes(num_bytes), 1)


@dataclass
class Fault:
    """What happens instead of the right answer to requests whose "METHOD /path" matches, `times` times.

    action, value: "status" N; "redirect" URL; "realm" URL of a token endpoint; "drop" after N bytes of the body;
    "stall" after N bytes of it; "length" off by N; "flip" the byte N; "gzip" N bytes of zeros; "whole" whatever range
    was asked for; "answer" with a function of the handler.
    """

    pattern: str
    action: str
    value: Any = 0
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    registry: Any  # the Registry that this is the handler of

    def log_message(self, format: str, *args: Any) -> None:
        return

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that goes away is no fault of ours
            super().handle()

    def do_GET(self) -> None:
        self._handle(self._get)

    def do_HEAD(self) -> None:
        self._handle(self._get)

    def do_POST(self) -> None:
        self._handle(self._post)

    def do_PATCH(self) -> None:
        self._handle(self._patch)

    def do_PUT(self) -> None:
        self._handle(self._put)

    def _handle(self, route: Callable[[str, Fault], None]) -> None:
        line = f"{self.command} {self.path}"
        with self.registry.lock:
            self.registry.seen.append((line, dict(self.headers.items())))
        path = urlsplit(self.path).path
        fault = self.registry.fault_for(line) or Fault("", "")
        if fault.action == "status":
            self._answer(fault.value, b'{"errors":[]}', fault.headers, close=True)
        elif fault.action == "redirect":
            self._answer(307, b"", {"Location": fault.value})
        elif fault.action == "realm":
            self._challenge(fault.value)
        elif fault.action == "answer":
            fault.value(self)
        elif path == "/token":
            self._answer(200, json.dumps({"token": self.registry.token}).encode())
        elif self.registry.token and self.headers.get("Authorization") != f"Bearer {self.registry.token}":
            self._challenge(f"{self.registry.url}/token")
        else:
            route(path, fault)

    def _challenge(self, realm: str) -> None:
        challenge = f'Bearer realm="{realm}",service="registry",scope="repository:library/m:pull"'
        self._answer(401, b"{}", {"WWW-Authenticate": challenge}, close=self.command in ("PATCH", "PUT", "POST"))

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, close: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _get(self, path: str, fault: Fault) -> None:
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs|blobs/uploads)/([^/]+)", path)
        if path in self.registry.files:
            body, headers = self.registry.files[path]
            self._bytes(body, fault, headers)
        elif found is None:
            self._answer(404, b"{}")
        elif found[2] == "manifests":
            data = self.registry.manifests.get(f"{found[1]}:{found[3]}")
            self._answer(404) if data is None else self._bytes(data, fault, {"Content-Type": MANIFEST_TYPE})
        elif found[2] == "blobs/uploads":
            self._upload_state(path, found[3], 204)
        else:
            place = self.registry.path(found[3])
            self._file(place, fault) if place.is_file() else self._answer(404)

    def _file(self, place: Path, fault: Fault) -> None:
        """Send a file without holding it in memory, unless there is a fault."""
        if fault.action or self.command == "HEAD":
            return self._bytes(place.read_bytes(), fault, {})
        size = place.stat().st_size
        start, stop, status = self._range(size)
        self.send_response(status)
        self.send_header("Content-Length", str(stop - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        with place.open("rb") as file:
            self.connection.sendfile(file, start, stop - start)

    def _range(self, size: int) -> tuple[int, int, int]:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)?", self.headers.get("Range", ""))
        if not asked:
            return 0, size, 200
        return int(asked[1]), min(size, int(asked[2]) + 1) if asked[2] else size, 206

    def _bytes(self, data: bytes, fault: Fault, headers: dict[str, str]) -> None:
        """Send bytes, or what the fault makes of them."""
        start, stop, status = (0, len(data), 200) if fault.action == "whole" else self._range(len(data))
        body, told = data[start:stop], stop - start
        if fault.action == "flip":
            place = min(fault.value, len(body) - 1)
            body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        elif fault.action == "gzip":
            body = zeros_compressed(fault.value)
            told, headers = len(body), {**headers, "Content-Encoding": "gzip"}
        elif fault.action == "length":
            told += fault.value
        self.send_response(status)
        self.send_header("Content-Length", str(told))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.close_connection = fault.action in ("drop", "stall", "length")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: fault.value] if fault.action in ("drop", "stall") else body)
        if fault.action == "stall":
            self.wfile.flush()
            self.registry.over.wait(60)

    def _post(self, path: str, fault: Fault) -> None:
        number = f"upload-{len(self.registry.uploads)}"
        place = self.registry.folder / number
        place.write_bytes(b"")
        self.registry.uploads[number] = place
        self._answer(202, b"", {"Location": f"{path}{number}?state=0"})

    def _patch(self, path: str, fault: Fault) -> None:
        place = self.registry.uploads.get(path.rpartition("/")[2])
        told = re.fullmatch(r"(\d+)-(\d+)", self.headers.get("Content-Range", ""))
        length = int(self.headers["Content-Length"])
        if place is None or told is None or int(told[2]) - int(told[1]) + 1 != length:
            return self._answer(404 if place is None else 400, close=True)
        if int(told[1]) != place.stat().st_size:
            return self._answer(416, close=True)
        taken = min(length, fault.value) if fault.action == "drop" else length
        with place.open("ab", buffering=0) as file:
            while taken > 0 and (data := self.rfile.read(min(taken, 1 << 20))):
                file.write(data)
                taken -= len(data)
        if fault.action == "drop":
            self.close_connection = True
            return None
        return self._upload_state(path, place.name, 202)

    def _upload_state(self, path: str, number: str, status: int) -> None:
        place = self.registry.uploads.get(number)
        if place is None:
            return self._answer(404)
        size = place.stat().st_size
        range_ = {"Range": f"0-{size - 1}"} if size else {}
        return self._answer(status, b"", {"Location": f"{path}?state={size}", **range_})

    def _put(self, path: str, fault: Fault) -> None:
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs/uploads)/([^/]+)", path)
        assert found is not None
        if found[2] == "manifests":
            self.registry.manifests[f"{found[1]}:{found[3]}"] = self.rfile.read(int(self.headers["Content-Length"]))
            return self._answer(201)
        place = self.registry.uploads.pop(found[3], None)
        digest = parse_qs(urlsplit(self.path).query)["digest"][0]
        if place is None:
            return self._answer(404)
        with place.open("rb") as file:
            sound = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
        if not sound:
            return self._answer(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
        place.rename(self.registry.path(digest))
        return self._answer(201)
