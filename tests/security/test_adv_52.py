"""Advisory 52: CORS headers for origins that only look right (CVE-2024-6221, CVE-2020-25032)."""

from __future__ import annotations

import pytest

RIGHT = ["http://localhost", "https://localhost:8443", "http://127.0.0.1:3000", "http://[::1]:1", "app://obsidian.md"]
WRONG = [
    *(
        "null",
        "http://localhost.evil.example",
        "http://evil.example",
        "http://localhost@evil.example",
        "https://localhost:x",
    ),
    *(
        "http://evil.localhost.example",
        "http://127.0.0.1.evil.example",
        "ftp://localhost",
        "http://localhost:80.evil.example",
    ),
    *(
        "http://0.0.0.0.evil",
        "javascript://localhost",
        "http://localhost/",
        "http://localhos",
        "xapp://x",
        "http:/localhost",
    ),
    *("http://localhost http://evil.example", "//localhost", "localhost", "http://", "http://evil.example#localhost"),
]


@pytest.mark.parametrize("origin", RIGHT + WRONG)
@pytest.mark.parametrize("method", ["OPTIONS", "GET"])
def test_headers_for_exact_matches_only(attacked, origin, method):
    answer = attacked.raw(
        f"{method} /api/tags HTTP/1.1\r\nHost: localhost:1\r\nOrigin: {origin}\r\nConnection: close\r\n"
        "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Private-Network: true\r\n\r\n".encode()
    )
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"access-control-allow-private-network" not in head
    assert b"access-control-allow-credentials" not in head
    if origin in RIGHT:
        assert b"\r\naccess-control-allow-origin: " + origin.encode() + b"\r\n" in head + b"\r\n"
    else:
        assert head.startswith(b"http/1.1 403 ")
        assert b"access-control-allow-origin" not in head
