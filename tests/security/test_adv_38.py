"""Advisory 38: texts that hurt tokenizers (GHSA-7rxv-5jhh-j6xx): long runs, half characters, NULs, marks."""

from __future__ import annotations

import json

import pytest

LIMIT = 33554432
FEW = {"num_predict": 1}
LONG = {
    "30 MB of one letter": "a" * (30 << 20),
    "all NUL": "\0" * (1 << 20),
    "combining marks": "e" + "\u0301" * 10**6,
    "blanks": " " * (8 << 20),
    "emoji": "🙂" * 10**6,
}


@pytest.mark.parametrize("name", LONG)
def test_long_texts(attacked, name):
    for path, body in (("/api/generate", {"prompt": LONG[name]}), ("/api/embed", {"input": LONG[name]})):
        assert attacked.post(path, **body, options=FEW)[0] in (200, 400, 413), path


def test_more_than_the_limit(attacked):
    for size in (LIMIT + 1, 40 << 20, 64 << 20):
        head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
        assert attacked.raw(head + b"a" * size).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("escape", ["\\ud800", "\\udfff", "\\ud800\\ud800", "a\\udc00b", "\\ud83d"])
def test_half_characters(attacked, escape):
    body = f'{{"model":"demo","prompt":"{escape}","stream":false,"options":{json.dumps(FEW)}}}'.encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    assert attacked.raw(head.encode() + body).startswith(b"HTTP/1.1 200 ")
