"""Give gunicorn's threaded worker limited patience: clients that are silent or stall cost us no thread for long."""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import struct
import time
from http import HTTPStatus
from typing import Any

from gunicorn.http import errors
from gunicorn.workers.gthread import _DEFER, ThreadWorker

from ollampi.api.errors import shown
from ollampi.api.stream import JSON, encode
from ollampi.mpiruntime import wire

HEAD_TIMEOUT_S = 10.0  # from the first byte of a request to the end of its headers
BODY_TIMEOUT_S = 30.0  # without a byte of the body
REQUEST_TIMEOUT_S = 300.0  # from the end of the headers to the end of the body, however steadily it drips
SEND_TIMEOUT_S = 60.0  # in which the client takes nothing of what waits for it
DRAIN_TIMEOUT_S, MAX_DRAINED_BYTES = 2.0, 64 << 10  # after our last byte
ACCEPT_PAUSE_S = 0.1  # where the system has no descriptor or memory left

_STATUS = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
}


class ClientSocket(socket.socket):
    """A client's connection. A client that takes too long counts as one that broke it, which gunicorn does not log."""

    ends = math.inf  # when what is being read must have come, by time.monotonic()
    in_head = False
    _left = b""

    @classmethod
    def around(cls, accepted: socket.socket) -> ClientSocket:
        """Return `accepted` as a ClientSocket; `accepted` is empty afterwards."""
        client = cls(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        # The kernel ends the connection where its peer keeps the window shut; every byte taken starts the time anew.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * SEND_TIMEOUT_S))
        return client

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what arrived; raise ConnectionResetError where nothing arrives in time."""
        if self.gettimeout() is not None:  # gunicorn has its own patience while it ends a request
            return super().recv(size, flags)
        left_s = min(BODY_TIMEOUT_S, self.ends - time.monotonic())
        try:
            if left_s <= 0:  # however fast single bytes come
                raise TimeoutError
            self.settimeout(left_s)
            return super().recv(size, flags)
        except TimeoutError:
            if self.in_head:
                self.shutdown(socket.SHUT_RDWR)  # nothing was asked, so nothing is answered
            raise _too_slow() from None
        finally:
            self.settimeout(None)

    def send_now(self, data: bytes) -> bool:
        """Send without waiting; return whether the client took all. What is left goes before anything else.

        Nobody else may send meanwhile, and nothing may be left from before.
        """
        self._left = wire.send_now(self, data)  # where the client is gone, the next sendall says so
        return not self._left

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send what is left and `data`; raise ConnectionResetError where the client stops taking it."""
        data, self._left = self._left + data, b""
        try:
            super().sendall(data, flags)
        except TimeoutError:
            raise _too_slow() from None

    def hang_up(self) -> None:
        """End the connection, but let the client read our last bytes; the descriptor stays open.

        A client that goes on sending is cut off when it is closed: else the kernel may leave it waiting for ever for us
        to take more.
        """
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_WR)
            if not self._drained():
                self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.shutdown(socket.SHUT_RD)

    def _drained(self) -> bool:
        """Return whether the client ended its side, within two seconds and 64 KiB; raise OSError."""
        ends, left = time.monotonic() + DRAIN_TIMEOUT_S, MAX_DRAINED_BYTES
        while left > 0 and time.monotonic() < ends:
            self.settimeout(DRAIN_TIMEOUT_S)
            data = super().recv(4096)
            if not data:
                return True
            left -= len(data)
        return False


class Pipe:
    """A way past gunicorn to a client whose answer has begun; what goes through it is framed as gunicorn does."""

    def __init__(self, client: ClientSocket, answer: Any) -> None:
        self._client = client
        self._answer = answer

    def send_now(self, data: bytes) -> bool:
        """Send part of the body as ClientSocket.send_now does."""
        return self._client.send_now(b"%X\r\n%b\r\n" % (len(data), data) if self._answer.chunked else data)

    def flush(self) -> None:
        """Send what is left; raise OSError where the client is gone."""
        self._client.sendall(b"")


class Door:
    """A listener that gives out ClientSockets."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self.getsockname = listener.getsockname

    def accept(self) -> tuple[ClientSocket, Any]:
        """Return the next connection and its peer's address; raise OSError."""
        accepted, address = self._listener.accept()
        return ClientSocket.around(accepted), address


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """One process with a thread per request and a poller for the connections that wait."""

    def accept(self, listener: Any) -> None:
        """Take a connection; out of descriptors, leave it to wait and serve those that we have."""
        try:
            super().accept(Door(listener))
        except OSError as e:
            self.log.error("cannot accept connections: %s; raise the limit on open files (ulimit -n)", e)
            time.sleep(ACCEPT_PAUSE_S)

    def handle(self, conn: Any) -> object:
        """Serve one request in a thread of the pool; return what gunicorn shall do with the connection."""
        if not conn.wait_for_data(0):
            return _DEFER  # to the poller: gunicorn would wait here for five seconds
        conn.sock.in_head, conn.sock.ends = True, time.monotonic() + HEAD_TIMEOUT_S
        keep = super().handle(conn)
        if not keep:
            conn.sock.hang_up()  # gunicorn would do it in the one thread that accepts, up to two seconds for each
        return keep

    def handle_request(self, req: Any, conn: Any) -> object:
        """Serve a request whose headers are there; return whether the connection can be kept."""
        conn.sock.in_head, conn.sock.ends = False, time.monotonic() + REQUEST_TIMEOUT_S
        return super().handle_request(req, conn)

    def handle_error(self, req: Any, client: ClientSocket, addr: Any, exc: Exception) -> None:
        """Answer what is not proper HTTP, as JSON; the connection ends after it."""
        if not isinstance(exc, errors.ParseException):
            super().handle_error(req, client, addr, exc)
            return
        status = _STATUS.get(type(exc), HTTPStatus.BAD_REQUEST)
        body = encode({"error": shown(str(exc))}).encode(errors="replace")
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n"
        with contextlib.suppress(OSError):
            client.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)


def adapted(application: Any) -> Any:
    """Return the WSGI application with a Pipe in its environ, and with `Connection: close` of its answers heeded.

    Gunicorn ignores that header.
    """

    def wrapped(environ: dict[str, Any], start_response: Any) -> Any:
        """Serve one request."""
        environ["ollampi.pipe"] = Pipe(environ["gunicorn.socket"], start_response.__self__)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            """Begin the answer."""
            if ("Connection", "close") in headers:
                start_response.__self__.force_close()
            return start_response(status, headers, exc_info)

        return application(environ, start)

    return wrapped


def _too_slow() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "the client takes too long")
