"""`ollampi doctor` between hosts: what is well, and networks that lose packets on one host, or between two of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.netlab import Lab, lab
from support.netlab_runs import LIMIT_S

SRC = Path(__file__).resolve().parent.parent.parent / "src"
SILENCE_S = 40.0  # a start of ranks on a busy machine takes less
NOWHERE = "02:00:00:00:00:99"  # the address of no card


def diagnose(net: Lab, *args: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the status and the findings of a doctor on the first host."""
    line = net.inside(0, [sys.executable, "-m", "ollampi", "doctor", "--json", *args])
    environ = {**net.environment(), "PYTHONPATH": str(SRC)}
    done = subprocess.run(line, env=environ, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return done.returncode, found


def errors(found: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    return [(each["check"], each["hosts"]) for each in found if each["status"] == "error"]


def test_all_pairs_of_hosts_are_measured_and_their_packets_take_their_time(tmp_path: Path) -> None:
    """3 ms each way are a round trip of 6 at least; at 100 Mbit/s no more than that can pass."""
    with lab(3, 100, 3000) as net:
        status, found = diagnose(net, "--host", "h1:1,h2:2,h3:1", "--dir", str(tmp_path), "--timeout", "240")
    assert (status, errors(found)) == (0, [])
    by_check = {name: [each for each in found if each["check"] == name] for name in {each["check"] for each in found}}
    pairs = [["h1", "h2"], ["h1", "h3"], ["h2", "h3"]]
    for name in ("latency", "bandwidth"):
        assert [each["hosts"] for each in by_check[name]] == pairs
        assert {each["status"] for each in by_check[name]} == {"warning"}
    assert all(each["value"] >= 6 for each in by_check["latency"])
    assert all(0 < each["value"] <= 105 for each in by_check["bandwidth"])
    assert [each["hosts"] for each in by_check["clock"]] == [["h2"], ["h3"]]
    assert {each["status"] for each in by_check["clock"]} == {"ok"}  # the clock of one machine
    assert [each["hosts"] for each in by_check["shared folder"]] == [["h1"], ["h2"], ["h3"]]
    assert [each["value"] for each in by_check["ranks"]] == [1, 2, 1]
    assert [each["value"] for each in by_check["world"]] == [4]
    assert os.listdir(tmp_path) == []


def test_a_host_that_is_cut_off_is_named() -> None:
    with lab(3, 1000) as net:
        net.drop(2)
        status, found = diagnose(net, "--host", "h1:1,h2:1,h3:1", "--timeout", str(SILENCE_S))
    assert (status, errors(found)) == (1, [("start", ["h3"])])
    assert {each["hosts"][0] for each in found if each["check"] == "cores"} == {"h1"}  # is told all the same


def test_two_hosts_that_do_not_reach_each_other_are_named_as_a_pair() -> None:
    """mpirun reaches both; what they send each other is swallowed, and nobody says so."""
    with lab(3, 1000) as net:
        for host, other in ((1, 3), (2, 2)):
            net.run(
                host, "ip", "neigh", "replace", f"10.77.0.{other}", "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent"
            )
        status, found = diagnose(net, "--host", "h1:1,h2:1,h3:1", "--timeout", str(SILENCE_S))
    assert (status, errors(found)) == (1, [("reach", ["h2", "h3"])])


def test_a_link_on_which_what_is_measured_does_not_arrive_is_named() -> None:
    """At 1 Mbit/s 4 MiB take half a minute, and ranks are given half of the silence."""
    with lab(2, 1, 20) as net:
        status, found = diagnose(net, "--host", "h1:1,h2:1", "--timeout", "40")
    assert (status, errors(found)) == (1, [("reach", ["h1", "h2"])])
