"""Talk to a server with Ollama's API over HTTP."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from ollampi.launcher.words import printable
from ollampi.mpiruntime.errors import ConfigError, OllampiError

Json = dict[str, Any]

KEY_HINT = "; set OLLAMA_API_KEY to one"  # behind what a server says that asks for a key
_CONNECT_TIMEOUT_S = 10.0


class UnreachableError(OllampiError):
    """No server answers at the address."""


class ApiError(OllampiError):
    """The server answered with an error; `status` is its HTTP status (200 for one in the middle of a stream)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(printable(text))
        self.status = status


class Client:
    """Call one server's API; every call opens its own connection, so closing a stream cancels that answer.

    key: goes along as a bearer token, unless it is empty; patience_s: how long to wait for bytes, None for ever.
    """

    def __init__(self, url: str, key: str = "", patience_s: float | None = None) -> None:
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("OLLAMA_API_KEY has characters that no HTTP header can carry: give a key of plain ASCII")
        self.url = url
        self._parts = urlsplit(url)
        self._key, self._patience_s = key, patience_s

    def impatient(self, patience_s: float) -> Client:
        """Return a client of the same server that gives up after so many seconds without a byte."""
        return Client(self.url, self._key, patience_s)

    def get(self, path: str) -> Json:
        """Return the object at path."""
        return self._whole("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Json:
        """Return the one object that answers body; streaming is off unless body says otherwise."""
        return self._whole("POST", path, {"stream": False, **body})

    def command(self, method: str, path: str, body: Mapping[str, Any]) -> None:
        """Have the server do what body says; there is nothing to return."""
        self._read(method, path, body)

    def has(self, path: str) -> bool:
        """Return whether there is something at path, which HEAD tells."""
        try:
            self._read("HEAD", path, None)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def upload(self, path: str, pieces: Iterable[bytes], size: int) -> None:
        """Send a body of `size` bytes piece by piece."""
        connection = self._connection(_CONNECT_TIMEOUT_S)
        headers = {**self._headers(), "Content-Type": "application/octet-stream", "Content-Length": str(size)}
        try:
            connection.connect()
            connection.sock.settimeout(self._patience_s)
            with suppress(BrokenPipeError, ConnectionResetError):  # a server that refuses says why before it hangs up
                connection.request("POST", self._parts.path + path, pieces, headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status >= 400:
                raise ApiError(response.status, _error_text(answer, response.status))
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"lost the connection to {self.url}: {_reason(error)}") from error
        finally:
            connection.close()

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[Json, None, None]:
        """Yield the objects that answer body as they come; the last has `done`, or the status `success` or `loaded`.

        Closing the iterator hangs up.
        """
        connection, response = self._send("POST", path, {**body, "stream": True})
        done = False
        try:
            for line in response:
                piece = _decode(line, response.status)
                done = bool(piece.get("done")) or piece.get("status") in ("success", "loaded")
                yield piece
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"lost the connection to {self.url}: {_reason(error)}") from error
        finally:
            response.close()
            connection.close()
        if not done:
            raise UnreachableError(f"{self.url} hung up before the answer was complete; its log may say why")

    def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> Json:
        return _decode(*self._read(method, path, body))

    def _read(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[bytes, int]:
        connection, response = self._send(method, path, body)
        try:
            return response.read(), response.status
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"lost the connection to {self.url}: {_reason(error)}") from error
        finally:
            response.close()
            connection.close()

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[HTTPConnection, HTTPResponse]:
        connection = self._connection(min(_CONNECT_TIMEOUT_S, self._patience_s or _CONNECT_TIMEOUT_S))
        headers = {"Content-Type": "application/json", "Accept": "application/json, application/x-ndjson"}
        try:
            connection.connect()
            connection.sock.settimeout(
                self._patience_s
            )  # an answer may take as long as it takes: a load, a long prompt
            text = None if body is None else json.dumps(body).encode()
            connection.request(method, self._parts.path + path, text, {**self._headers(), **headers})
            response = connection.getresponse()
            if response.status >= 400:
                said = _error_text(response.read(), response.status)
                hint = KEY_HINT if response.status == 401 else ""
                raise ApiError(response.status, said + hint)
            return connection, response
        except (OSError, HTTPException, UnicodeError) as error:
            connection.close()
            raise UnreachableError(
                f"no server answers at {self.url} ({_reason(error)}): "
                "start one with `make serve` or `ollampi launch -n 4`, or name another with --host or OLLAMA_HOST"
            ) from error
        except BaseException:  # an error answer; or Ctrl-C while the server thinks: hang up, so that it stops
            connection.close()
            raise

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _connection(self, timeout_s: float) -> HTTPConnection:
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        return kind(self._parts.hostname or "", self._parts.port, timeout=timeout_s)


def _decode(line: bytes, status: int) -> Json:
    try:
        piece = json.loads(line)
    except ValueError:
        piece = None
    if not isinstance(piece, dict):
        raise ApiError(status, f"the server's answer is not a JSON object: {line[:80]!r}; is it an Ollama server?")
    if "error" in piece:
        raise ApiError(status, str(piece["error"]))
    return piece


def _error_text(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError):
        return body.decode(errors="replace").strip()[:200] or f"HTTP status {status}"


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"it does not speak TLS as it should: {error.reason or error}; write http:// for plain HTTP".lower()
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return str(error).lower() or type(error).__name__
