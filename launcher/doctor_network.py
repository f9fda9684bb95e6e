"""Judge what ranks measured between hosts: clocks, links, sums, a shared folder, the files of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollampi.launcher.doctor_checks import (
    CHECKS,
    GB,
    MAX_ROUND_TRIP_MS,
    MIN_MBIT_PER_S,
    Finding,
    found,
    sum_limit_ms,
)

_SIZES = {8 << 10: "8 KiB", 64 << 10: "64 KiB", 1 << 20: "1 MiB", 16 << 20: "16 MiB"}


def clock_findings(clocks: Sequence[Sequence[Any]]) -> list[Finding]:
    """Return what is to be said of clocks [host, seconds ahead of rank 0's, doubt in seconds]."""
    limit = _limit("clock")
    return [
        found("clock", "warning" if abs(ahead) - doubt > limit else "ok", round(ahead, 6), [host])
        for host, ahead, doubt in clocks
    ]


def link_findings(links: Sequence[Sequence[Any]]) -> list[Finding]:
    """Return what is to be said of links [host, host, round trip in seconds, bytes per second]."""
    findings = []
    for first, second, seconds, rate in links:
        where = [first] if first == second else [first, second]
        trip, mbit = 1e3 * seconds, rate * 8e-6
        findings.append(found("latency", "ok" if trip <= MAX_ROUND_TRIP_MS else "warning", trip, where))
        findings.append(found("bandwidth", "ok" if mbit >= MIN_MBIT_PER_S else "warning", mbit, where))
    return findings


def sum_findings(sums: Sequence[tuple[int, float]]) -> list[Finding]:
    """Return what is to be said of sums (bytes, seconds)."""
    return [
        found(f"all-reduce {_SIZES[size]}", "ok" if 1e3 * seconds <= sum_limit_ms(size) else "warning", 1e3 * seconds)
        for size, seconds in sums
    ]


def folder_findings(told: Sequence[Mapping[str, Any]], hosts: Sequence[str], size_bytes: int) -> list[Finding]:
    """Return what is to be said of a shared folder, of which each host told what shared_folder has it find."""
    findings = []
    for facts, host in zip(told, hosts, strict=True):
        if "error" in facts:
            findings.append(found("shared folder", "error", facts["error"], [host]))
        elif "read_s" in facts:
            findings.append(found("shared folder", "ok", "seen", [host]))
        for name, key in (("folder write", "write_s"), ("folder read", "read_s")):
            if key in facts:
                rate = size_bytes / facts[key] / 1e6
                findings.append(found(name, "ok" if rate >= _limit(name) else "warning", rate, [host]))
        if "free" in facts:
            free = facts["free"] / GB
            findings.append(found("folder room", "ok" if free >= _limit("folder room") else "warning", free, [host]))
    return findings


def model_findings(
    digests: Sequence[Mapping[str, str]], hosts: Sequence[str], needed: int, free: Sequence[int]
) -> list[Finding]:
    """Return what is to be said of a model: its files by host, the bytes that a host needs, and what each has free."""
    findings = []
    for theirs, host, left in zip(digests, hosts, free, strict=True):
        other = sorted(path for path in {*digests[0], *theirs} if digests[0].get(path) != theirs.get(path))
        if "error" in theirs:
            findings.append(found("model", "error", theirs["error"], [host]))
        elif other and "error" not in digests[0]:
            findings.append(found("model", "error", f"another {other[0]} than on {hosts[0]}", [host]))
        else:
            fits = needed <= left
            told = f"{needed / GB:.3g} GB of {left / GB:.3g} free"
            findings.append(found("model", "ok" if fits else "error", told if fits else f"takes {told}", [host]))
    return findings


def _limit(name: str) -> float:
    limit = CHECKS[name].limit
    assert not isinstance(limit, str)
    return limit or 0
