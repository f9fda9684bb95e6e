"""Frame messages between the HTTP process and the coordinator: length-prefixed msgpack over a stream socket.

A frame is a 4-byte big-endian length followed by one msgpack map. Addresses are written `unix:@NAME` (Linux's
abstract name space: nothing stays behind in a file system) or `unix:/PATH`.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgpack

from ollampi.mpiruntime.errors import OllampiError

MAX_FRAME_BYTES = 256 << 20
_LENGTH = struct.Struct(">I")

Message = dict[str, Any]


class Closed(OllampiError):
    """The other side of a connection went away."""


def unix_address(address: str) -> str:
    """Return the socket address for `unix:@NAME` or `unix:/PATH`."""
    kind, _, name = address.partition(":")
    if kind != "unix" or not name:
        raise OllampiError(f"unknown address {address!r}; write unix:@NAME or unix:/PATH")
    return "\0" + name[1:] if name.startswith("@") else name


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket, as the kernel knows it."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", raw)[1])


def frame(message: Message) -> bytes:
    """Return the frame of one message."""
    body: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(body)) + body


def send(connection: socket.socket, message: Message) -> None:
    """Send one message; block until the kernel has taken it. Raise Closed where the peer is gone."""
    try:
        connection.sendall(frame(message))
    except OSError as e:
        raise Closed(f"the connection is closed: {e}") from e


def send_now(connection: socket.socket, data: bytes) -> bytes:
    """Send what fits without waiting; return the rest, which is all of it where the peer is gone."""
    try:
        sent = connection.send(data, socket.MSG_DONTWAIT)
        return data[sent:]
    except OSError:
        return data


def receive(connection: socket.socket) -> Message:
    """Return the next message; block until it is whole. Raise Closed where the peer is gone."""
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if size > MAX_FRAME_BYTES:
        raise Closed(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
    message: Message = msgpack.unpackb(_exactly(connection, size))
    return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    """Return exactly `size` bytes from the connection."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        try:
            count = connection.recv_into(view[got:])
        except OSError as e:
            raise Closed(f"the connection is closed: {e}") from e
        if not count:
            raise Closed("the peer closed the connection")
        got += count
    return bytes(data)
