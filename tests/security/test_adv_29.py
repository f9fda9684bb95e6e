"""Advisory 29: huge headers and URLs (CVE-2025-48956) take neither memory nor time."""

from __future__ import annotations

import pytest

GROWTH_KIB = 16 << 10


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (100 << 20) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: x\r\n" * 5000 + b"\r\n",
        b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["1 MB", "100 MB", "5000 headers", "1 MB URL"],
)
def test_heads(attacked, head):
    before = attacked.resident()
    answer = attacked.raw(head)
    assert answer == b"" or answer.split(b" ")[1] in (b"400", b"414", b"431")
    assert attacked.resident() <= before + GROWTH_KIB
