"""Advisory 49: oversized bodies (CVE-2025-33201 and others) are refused after the limit at the latest."""

from __future__ import annotations

import socket

import pytest

LIMIT, CHUNK = 33554432, 1 << 20
HEAD = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n"


def sent_until_refused(port: int, head: bytes, frame: bytes) -> tuple[int, bytes]:
    """Return how many bytes of 1 GiB the server took before it answered, and the answer."""
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(head)
        sent, answer = 0, b""
        client.settimeout(0.005)
        while sent < 1 << 30 and not answer:
            try:
                answer = client.recv(65536)
            except TimeoutError:
                client.settimeout(30)
                try:
                    client.sendall(frame)
                    sent += len(frame)
                except ConnectionError:
                    break
                client.settimeout(0.005)
            except ConnectionError:
                break
        return sent, answer


@pytest.mark.parametrize("chunked", [False, True])
def test_a_gigabyte(attacked, chunked):
    data = b"x" * CHUNK
    head = HEAD + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % (1 << 30))
    sent, answer = sent_until_refused(attacked.server.port, head, b"%X\r\n%b\r\n" % (CHUNK, data) if chunked else data)
    assert sent <= LIMIT + 16 * CHUNK  # what lies in the buffers of the system between
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd", "gzip, gzip"])
def test_compressed_bodies(attacked, coding):
    for path in ("/api/generate", "/api/chat", "/v1/chat/completions", "/api/create"):
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Encoding: {coding}\r\nContent-Length: 4\r\n\r\n"
        assert attacked.raw(head.encode() + b"xxxx").split(b" ")[1] in (b"413", b"415"), path
