"""Advisory 32: error texts that tell where things are (CVE-2026-22778): no paths, addresses, tracebacks, shm names."""

from __future__ import annotations

import json
import re

import pytest
from support.attacks import operations

TELLING = re.compile(
    r"/(tmp|root|home|usr|dev|proc|work|var)/|0x[0-9a-f]{6,}|Traceback|File \"|line \d+, in|psm_|vader|shm"
)
BODIES: list[bytes] = [
    b"",
    b"{",
    b"[]",
    b'{"model":"demo"',
    b'{"model":5}',
    b'{"model":"../../etc/passwd","name":"x"}',
    b'{"model":"demo","prompt":"x","options":{"num_ctx":"x"}}',
    b'{"model":"demo","prompt":"x","format":{"type":"nope"}}',
    b'{"model":"demo","prompt":"x","template":"{{ .Nope }}","options":{"num_predict":2},"max_tokens":2}',
    b'{"model":"demo","messages":[{"role":"user","content":"x","images":["!"]}]}',
    b'{"model":"demo","input":[5]}',
    b'{"source":"a","destination":"../b"}',
    json.dumps({"model": "x", "from": "/etc/passwd"}).encode(),
    json.dumps({"model": "x", "files": {"/etc/passwd": "sha256:" + "0" * 64}}).encode(),
    b"\xff\xfe",
]
ELSEWHERE = {"/api/pull", "/api/push"}  # which would ask a public registry for most of these names


@pytest.mark.parametrize("body", BODIES)
def test_errors_tell_nothing_of_the_host(attacked, body):
    for method, path in operations():
        if method != "GET" and path not in ELSEWHERE:
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            answer = attacked.raw(head.encode() + body).decode(errors="replace")
            assert answer.startswith("HTTP/1.1 "), (method, path)
            found = TELLING.search(answer.partition("\r\n\r\n")[2])
            assert found is None, (method, path, answer)


@pytest.mark.parametrize("path", sorted(ELSEWHERE))
def test_nor_do_those_of_a_registry(attacked, registry, path):
    for body in ({"model": f"{registry.host}/library/none"}, {"model": "../../etc/passwd"}, {"model": 5}, {}):
        answer = attacked.server.request("POST", path, {"insecure": True, "stream": False, **body})
        assert answer[0] >= 400, body
        assert TELLING.search(json.dumps(answer[1])) is None, answer
