"""Measure what a network laboratory is: the round trip of small packets, and the throughput of TCP."""

from __future__ import annotations

import subprocess
import sys

from support.netlab import Lab

_ANSWER = """
import socket
small = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); small.bind(("", 5000))
large = socket.create_server(("", 5001)); print("ready", flush=True)
for _ in range(500): small.sendto(*small.recvfrom(100))
taker, _ = large.accept()
while taker.recv(1 << 20): pass
taker.close()
"""
_ASK = """
import socket, statistics, time
small = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); times = []
for _ in range(500):
    began = time.perf_counter(); small.sendto(b"x", ("10.77.0.2", 5000)); small.recv(100)
    times.append(time.perf_counter() - began)
large = socket.create_connection(("10.77.0.2", 5001)); began = time.perf_counter()
large.sendall(bytes(50_000_000)); large.shutdown(socket.SHUT_WR); large.recv(1)
print(f"{statistics.median(times) * 1e6:.0f} us, {50 * 8 / (time.perf_counter() - began):.0f} Mbit/s")
"""


def probe(net: Lab) -> str:
    """Return the median round trip and the throughput between the first two hosts, in words."""
    answer = net.inside(1, [sys.executable, "-c", _ANSWER])
    with subprocess.Popen(answer, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return net.run(0, sys.executable, "-c", _ASK).strip()
