"""Speak HTTP to hosts that may be contacted, at checked addresses, without redirects and decompression of its own."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError, TimeoutError

from ollampi.api.errors import ApiError
from ollampi.api.registry.hosts import Hosts, Origin, joined, origin_of
from ollampi.api.registry.transfer import Cancel, Limits, TransientError

USER_AGENT = "ollampi"
MAX_ERROR_BYTES = 64 << 10
_READ_BYTES = 256 << 10
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class _Plain(HTTPConnection):
    """A connection that a transfer's end breaks."""

    def __init__(self, *args: Any, cancel: Cancel, **more: Any) -> None:
        super().__init__(*args, **more)
        self._cancel = cancel

    def connect(self) -> None:
        """Connect, and be watched."""
        super().connect()
        self._cancel.watch(self.sock)


class _Secure(_Plain, HTTPSConnection):
    """The same over TLS."""


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


@dataclass
class _Peer:
    """The connections to one origin; `address` is the one of `addresses` that was reached last."""

    addresses: list[str]
    pools: dict[str, HTTPConnectionPool]


class Credentials(Protocol):
    """What a request may say about who asks."""

    def authorization(self, origin: Origin) -> str | None:
        """Return the header for requests to `origin`, None where it must not see any."""

    def answer(self, origin: Origin, response: BaseHTTPResponse) -> bool:
        """Take a 401 of `origin`; return whether the same request is worth another try."""


@dataclass
class Request:
    """One request. Redirects are followed where it is redirected; one with a body never is."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Iterable[bytes] | bytes | None = None
    is_redirected: bool = True


class Web:
    """The connections of one transfer; safe to use from several threads."""

    def __init__(self, hosts: Hosts, cancel: Cancel, limits: Limits, num_connections: int) -> None:
        self.hosts, self._cancel, self._limits = hosts, cancel, limits
        self._num_connections = num_connections
        self._peers: dict[Origin, _Peer] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections that nobody uses any more."""
        with self._lock:
            for peer in self._peers.values():
                for pool in peer.pools.values():
                    pool.close()

    def send(self, request: Request, credentials: Credentials) -> tuple[BaseHTTPResponse, str]:
        """Return the answer to a request, and the URL that gave it after redirects.

        Every host on the way is checked, and none but the credentials'
        own sees them. Raise TransientError for what may pass, ApiError for the rest, any status of 400 or more too.
        """
        url, asked_again = request.url, False
        follows = request.is_redirected and request.body is None
        for _ in range(self._limits.num_redirects + 1):
            origin = origin_of(url)
            response = self._once(request, url, origin, credentials.authorization(origin))
            if response.status in _REDIRECTS and follows and "Location" in response.headers:
                url = self._redirected(url, response)
            elif response.status == 401 and not asked_again and credentials.answer(origin, response):
                asked_again = True
            elif response.status >= 300:
                raise _failure(response, origin)
            else:
                return response, url
        raise ApiError(502, f"{origin_of(request.url).netloc} redirects more than {self._limits.num_redirects} times")

    def _redirected(self, url: str, response: BaseHTTPResponse) -> str:
        """Return where a redirect leads."""
        discard(response)
        target = joined(url, response.headers["Location"])
        if urlsplit(url).scheme == "https" and not target.startswith("https:"):
            raise ApiError(502, f"{origin_of(url).netloc} redirects from HTTPS to something else; it is not followed")
        return target

    def _once(self, request: Request, url: str, origin: Origin, authorization: str | None) -> BaseHTTPResponse:
        """Return the answer of the first address that can be reached."""
        headers = {"Host": origin.netloc, "User-Agent": USER_AGENT, "Accept-Encoding": "identity", **request.headers}
        if authorization is not None:
            headers["Authorization"] = authorization
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        peer = self._peer(origin)
        for address in list(peer.addresses):
            self._cancel.check()
            try:
                response = self._pool(peer, origin, address).urlopen(
                    request.method,
                    target,
                    body=request.body,
                    headers=headers,
                    retries=False,
                    redirect=False,
                    assert_same_host=False,
                    preload_content=False,
                    decode_content=False,
                )
            except (NewConnectionError, ConnectTimeoutError) as e:
                self._cancel.check()
                last: Exception = e
                continue
            except SSLError as e:
                raise ApiError(502, f"no TLS with {origin.netloc}: {_reason(e)}; {_plain_hint(origin)}") from e
            except (HTTPError, OSError) as e:
                self._cancel.check()
                raise TransientError(f"{origin.netloc} broke the connection ({type(e).__name__})") from e
            peer.addresses.sort(key=lambda each: each != address)
            return _plain(response, origin)
        raise TransientError(f"{origin.netloc} cannot be reached ({type(last).__name__})")

    def _peer(self, origin: Origin) -> _Peer:
        """Return what is known of an origin, which is resolved and checked once in a transfer."""
        with self._lock:
            if origin not in self._peers:
                self._peers[origin] = _Peer(self.hosts.addresses(origin), {})
            return self._peers[origin]

    def _pool(self, peer: _Peer, origin: Origin, address: str) -> HTTPConnectionPool:
        """Return the connections to one address."""
        options: dict[str, Any] = {
            "timeout": Timeout(connect=self._limits.connect_s, read=self._limits.stall_s),
            "maxsize": self._num_connections,
            "cancel": self._cancel,
        }
        with self._lock:
            if address not in peer.pools:
                if origin.scheme == "https":
                    peer.pools[address] = _SecurePool(address, origin.port, server_hostname=origin.host, **options)
                else:
                    peer.pools[address] = _PlainPool(address, origin.port, **options)
            return peer.pools[address]


def _plain(response: BaseHTTPResponse, origin: Origin) -> BaseHTTPResponse:
    """Return the answer unless its body is compressed, which nobody asked for: its size would be unknown."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() == "identity":
        return response
    response.close()
    raise ApiError(502, f"what {origin.netloc} sent came compressed ({encoding[:40]!r}); it is not read")


def chunks(response: BaseHTTPResponse, what: str) -> Generator[bytes, None, None]:
    """Yield the body as it comes, in pieces of whatever size; raise TransientError where it ends early or stalls."""
    try:
        while data := response.read1(_READ_BYTES, decode_content=False):
            yield data
    except TimeoutError as e:
        raise TransientError(f"{what} stalled") from e
    except (HTTPError, OSError, ValueError) as e:  # ValueError: a chunk without a size
        raise TransientError(f"{what} broke off ({type(e).__name__})") from e
    finally:
        if response.length_remaining == 0:
            response.release_conn()
        else:
            response.close()


def bounded(response: BaseHTTPResponse, max_bytes: int, what: str) -> bytes:
    """Return the whole body; raise as `chunks` does, and ApiError where it has more than `max_bytes`."""
    found = bytearray()
    for data in chunks(response, what):
        found += data
        if len(found) > max_bytes:
            response.close()
            raise ApiError(502, f"{what} has more than {max_bytes} bytes; it is not read")
    return bytes(found)


def discard(response: BaseHTTPResponse) -> None:
    """Read the rest of a short body, so that its connection can be used again; close that of a longer one."""
    if (response.length_remaining or 0) > MAX_ERROR_BYTES or response.chunked:
        response.close()
        return
    try:
        bounded(response, MAX_ERROR_BYTES, "a short answer")
    except (TransientError, ApiError):
        response.close()


def _failure(response: BaseHTTPResponse, origin: Origin) -> Exception:
    """Return the error for a status of 300 or more."""
    after = response.headers.get("Retry-After", "")
    discard(response)
    text = f"{origin.netloc} answered {response.status}"
    if response.status == 405:
        text += ": it takes no uploads; a server of this kind pulls by itself, with `ollampi pull NAME --from URL`"
    if response.status in _PASSING:
        return TransientError(text, float(after) if after.isascii() and after.isdigit() and len(after) < 9 else None)
    return RefusedError(response.status, text)


class RefusedError(ApiError):
    """A status that no second try will change; `code` is that status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(500, text)
        self.code = code


def _reason(error: Exception) -> str:
    """Return the words of the innermost reason, without addresses."""
    inner: Any = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    return str(getattr(inner, "verify_message", "") or getattr(inner, "reason", "") or type(inner).__name__)


def _plain_hint(origin: Origin) -> str:
    return f"where it speaks plain HTTP, start the server with server.registries=[http://{origin.host}:{origin.port}]"
