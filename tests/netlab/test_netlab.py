"""The laboratory is what it says: hosts with names, rates, delays and counters, and nothing is left of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.netlab import Lab, lab

BOTH = pytest.mark.parametrize("delay_us", [None, 50.0], ids=["switch", "relay"])
SEND = "import socket; s = socket.create_connection(('10.77.0.{to}', 5000)); s.sendall(bytes({count})); s.close()"
TAKE = "import socket; s = socket.create_server(('', 5000)); print('ready', flush=True); c = s.accept()[0]\nn = 0\n"
TAKE += "while part := c.recv(1 << 16): n += len(part)\nprint(n)"


def spaces() -> set[str]:
    """Return the network namespaces that any process is in."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            found.add(os.readlink(entry / "ns" / "net"))
        except OSError:
            continue
    return found


def send(net: Lab, count: int) -> str:
    """Return the bytes that host 1 got of those that host 0 sent it."""
    take = subprocess.Popen(net.inside(1, [sys.executable, "-c", TAKE]), stdout=subprocess.PIPE, text=True)
    with take:
        assert take.stdout is not None
        assert take.stdout.readline() == "ready\n"
        net.run(0, sys.executable, "-c", SEND.format(to=2, count=count))
        return take.stdout.read().strip()


@BOTH
def test_hosts_have_names_and_addresses_and_nothing_is_left(delay_us: float | None) -> None:
    with lab(3, 1000, delay_us) as net:
        inside = {os.readlink(f"/proc/{pid}/ns/net") for pid in net.pids}
        assert len(inside) == 3
        for host in range(3):
            assert net.run(host, "hostname") == f"h{host + 1}\n"
            assert f"10.77.0.{host + 1}/24" in net.run(host, "ip", "addr", "show", "eth0")
        sleeper = subprocess.Popen(net.inside(1, ["sleep", "1000"]))
    assert sleeper.wait(30) != 0
    end = time.monotonic() + 30
    while inside & spaces():
        assert time.monotonic() < end, "a process is left in a host"
        time.sleep(0.05)


@BOTH
def test_all_bytes_arrive_and_are_counted_at_both_ends(delay_us: float | None) -> None:
    """Headers add 52 bytes to at most 1448; where the kernel cuts packets late they count once."""
    with lab(2, 1000, delay_us) as net:
        before = net.counted()
        assert send(net, 5_000_000) == "5000000"
        sent = net.counted()[0][0] - before[0][0]
        received = net.counted()[1][1] - before[1][1]
    assert 5_000_000 <= sent <= 1.06 * 5_000_000
    assert 0.99 * sent <= received <= 1.01 * sent


@BOTH
def test_a_host_that_is_cut_off_gets_nothing(delay_us: float | None) -> None:
    with lab(2, 0, delay_us) as net:
        net.cut(1)
        program = "import socket; socket.create_connection(('10.77.0.2', 5000), timeout=1)"
        with pytest.raises(subprocess.CalledProcessError):
            net.run(0, sys.executable, "-c", program)


def test_packets_take_their_time(tmp_path: Path) -> None:
    """At 8 Mbit/s and 100 ms a packet of 1000 bytes and its answer take 2 (1 + 100) ms, or longer where others work."""
    echo = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 5000))\n"
    echo += "print('ready', flush=True)\nwhile True: s.sendto(*s.recvfrom(2000))"
    ask = "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); began = time.monotonic()\n"
    ask += "s.sendto(bytes(972), ('10.77.0.2', 5000)); s.recv(2000); print(time.monotonic() - began)"
    with lab(2, 8, 100_000) as net:
        process = subprocess.Popen(net.inside(1, [sys.executable, "-c", echo]), stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert float(net.run(0, sys.executable, "-c", ask)) >= 0.202
            process.kill()


def test_two_laboratories_do_not_meet() -> None:
    with lab(2) as one, lab(2) as other:
        assert not set(one.pids) & set(other.pids)
        assert send(one, 1000) == send(other, 1000) == "1000"
        assert one.counted()[0][0] > 1000
    assert not re.search("10[.]77[.]0", subprocess.run(["ip", "addr"], stdout=subprocess.PIPE, text=True).stdout)
