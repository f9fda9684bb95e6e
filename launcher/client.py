"""Talk to a server with Ollama's API over HTTP."""

import json
import os
from collections.abc import Generator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from ollampi.mpiruntime.errors import OllampiError

Json = dict[str, Any]

_CONNECT_TIMEOUT_S = 10.0


class UnreachableError(OllampiError):
    """No server answers at the address."""


class ApiError(OllampiError):
    """The server answered with an error; `status` is its HTTP status (200 for one in the middle of a stream)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Client:
    """Call one server's API; every call opens its own connection, so closing a stream cancels that answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._parts = urlsplit(url)

    def get(self, path: str) -> Json:
        """Return the object at path."""
        return self._whole("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Json:
        """Return the one object that answers body; streaming is off unless body says otherwise."""
        return self._whole("POST", path, {"stream": False, **body})

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[Json, None, None]:
        """Yield the objects that answer body as they come; the last has `done`. Closing the iterator hangs up."""
        connection, response = self._send("POST", path, {**body, "stream": True})
        done = False
        try:
            for line in response:
                piece = _decode(line, response.status)
                done = bool(piece.get("done"))
                yield piece
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"lost the connection to {self.url}: {_reason(error)}") from error
        finally:
            response.close()
            connection.close()
        if not done:
            raise UnreachableError(f"{self.url} hung up before the answer was complete; its log may say why")

    def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> Json:
        connection, response = self._send(method, path, body)
        try:
            return _decode(response.read(), response.status)
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"lost the connection to {self.url}: {_reason(error)}") from error
        finally:
            response.close()
            connection.close()

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[HTTPConnection, HTTPResponse]:
        connection = self._connection()
        headers = {"Content-Type": "application/json", "Accept": "application/json, application/x-ndjson"}
        try:
            connection.connect()
            connection.sock.settimeout(None)  # an answer may take as long as it takes: a load, a long prompt
            text = None if body is None else json.dumps(body).encode()
            connection.request(method, self._parts.path + path, text, headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise ApiError(response.status, _error_text(response.read(), response.status))
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

    def _connection(self) -> HTTPConnection:
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        return kind(self._parts.hostname or "", self._parts.port, timeout=_CONNECT_TIMEOUT_S)


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
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return str(error).lower() or type(error).__name__
