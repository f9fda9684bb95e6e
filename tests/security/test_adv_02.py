"""Advisory 2: DNS rebinding (CVE-2024-28224). A foreign Host header reaches no route."""

from __future__ import annotations

import pytest
from support.attacks import operations

FOREIGN = ["evil.example", "127.0.0.1.evil.example", "evil.example:11434", "localhost.evil.example", ""]


@pytest.mark.parametrize("host", FOREIGN)
def test_every_route_refuses_foreign_hosts(attacked, host):
    for method, path in operations():
        for sent in (method, "OPTIONS", "PUT"):
            answer = attacked.raw(f"{sent} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403 "), (sent, path)
            assert answer.endswith(b"\r\n\r\n"), "no body"


@pytest.mark.parametrize("hosts", [["localhost", "evil.example"], ["evil.example", "localhost"], []])
def test_two_hosts_or_none(attacked, hosts):
    head = "".join(f"Host: {host}\r\n" for host in hosts)
    answer = attacked.raw(f"GET /api/tags HTTP/1.1\r\nConnection: close\r\n{head}\r\n".encode())
    assert answer.split(b" ")[1] in (b"400", b"403")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:11434", "[::1]", "x.localhost", "192.168.1.7"])
def test_names_of_this_machine_pass(attacked, host):
    assert attacked.raw(f"GET /api/tags HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()).startswith(
        b"HTTP/1.1 200 "
    )
