"""Run many damaged inputs through a reader and tell which of them broke what it promises."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class TooLong(BaseException):
    """A case took longer than it may; no Exception, so that nothing on the way takes it for its own."""


@dataclass
class Report:
    """What came of the cases; failures: the first of each kind by the name of the case.

    slowest: the case that took longest; largest: the one that took most memory while it was checked; grown_bytes: by
    how much the memory of the process rose over all cases.
    """

    cases: int = 0
    refused: int = 0
    loaded: int = 0
    slowest_s: float = 0.0
    slowest: str = ""
    largest_bytes: int = 0
    largest: str = ""
    grown_bytes: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.cases} cases: {self.refused} refused, {self.loaded} loaded, {len(self.failures)} kinds of failures",
            f"slowest {self.slowest_s * 1e3:.1f} ms ({self.slowest})",
            f"largest {self.largest_bytes / 2**20:.1f} MiB ({self.largest}); all {self.grown_bytes / 2**20:.1f} MiB",
        ]
        return "\n".join(lines + [f"FAILED {kind}: {case}" for kind, case in self.failures.items()])


def run(cases: Iterable[tuple[str, T]], check: Callable[[T], bool], limit_s: float = 1.0) -> Report:
    """Return what `check` made of the named cases: True for loaded, False for refused, an exception for a failure.

    It is ended after limit_s by a signal, so it must run in the main thread.
    """

    def late(number: int, frame: FrameType | None) -> None:
        raise TooLong

    report, before = Report(), memory_bytes()
    kept = signal.signal(signal.SIGALRM, late)
    try:
        for name, case in cases:
            _run_one(report, name, case, check, limit_s)
    finally:
        signal.signal(signal.SIGALRM, kept)
    report.grown_bytes = memory_bytes() - before
    return report


def _run_one(report: Report, name: str, case: T, check: Callable[[T], bool], limit_s: float) -> None:
    """Run one case and count it."""
    report.cases += 1
    _forget_peak()
    before = memory_bytes()
    began = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        if check(case):
            report.loaded += 1
        else:
            report.refused += 1
    except (Exception, TooLong) as e:
        report.failures.setdefault(f"{type(e).__name__} {str(e)[:100]}", name)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    took = time.perf_counter() - began
    if took > report.slowest_s:
        report.slowest_s, report.slowest = took, name
    if (taken := memory_bytes("VmHWM") - before) > report.largest_bytes:
        report.largest_bytes, report.largest = taken, name


def _forget_peak() -> None:
    """Let the kernel count the peak of this process's memory anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_bytes(field: str = "VmRSS") -> int:
    """Return a size of this process by its name in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)
