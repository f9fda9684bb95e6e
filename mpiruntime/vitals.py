"""Tell how a rank is: its processor time, memory, GPU, steps, and what it does now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ollampi.mpiruntime.meters import Meters
from ollampi.mpiruntime.watchdog import Place
from ollampi.mpiruntime.world import free_memory, total_memory

Beat = dict[str, Any]  # plain values, for the wire
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Activity:
    """What a rank does; written by its main thread alone, read by any.

    doing: "step", "load", "test" or "" for nothing; reads: whether it loads a model beside that; worked_at: when it
    last ended a step or a test, on time.monotonic's clock; gpus: as in NodeHealth, as they were at the last look.
    """

    doing: str = ""
    reads: bool = False
    worked_at: float | None = None
    gpus: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def of(self, doing: str) -> Iterator[None]:
        """Note that the block is what the rank does; a block within another one counts."""
        before, self.doing = self.doing, doing
        try:
            yield
        finally:
            self.doing = before
        if doing != "load":
            self.worked_at = time.monotonic()


class Vitals:
    """Makes the beats of one rank; used by one thread at a time.

    place: where the rank waits; its turn tells whether a long step goes on.
    """

    def __init__(self, meters: Meters, activity: Activity, place: Place) -> None:
        self._meters = meters
        self._activity = activity
        self._place = place
        self._memory_total = total_memory()
        self._looked, self._busy_s = time.monotonic(), time.process_time()
        self._steps = (0, 0.0)
        self._step_ms: float | None = None

    def __call__(self, now: float) -> Beat:
        """Return how the rank is at a time of time.monotonic: a few file reads, nothing collective.

        cpu_percent: of one core, by this process since the last call; step_ms: the mean of the steps since, or the
        last such mean; ages in seconds, None for never. Raise OSError.
        """
        busy_s = time.process_time()
        elapsed, used = now - self._looked, busy_s - self._busy_s
        if elapsed > 0:
            self._looked, self._busy_s = now, busy_s
        count, seconds, ended = self._meters.total()
        new, spent = count - self._steps[0], seconds - self._steps[1]
        if new > 0:
            self._steps, self._step_ms = (count, seconds), 1e3 * spent / new
        worked_at = self._activity.worked_at
        return {
            "cpu_percent": round(100 * used / elapsed, 1) if elapsed > 0 else 0.0,
            "memory_total": self._memory_total,
            "memory_available": free_memory(),
            "process_bytes": _resident_bytes(),
            "gpus": self._activity.gpus,
            "step_ms": self._step_ms,
            "step_age": None if ended is None else max(0.0, now - ended),
            "work_age": None if worked_at is None else max(0.0, now - worked_at),
            "doing": self._activity.doing or ("load" if self._activity.reads else ""),
            "turn": self._place.turn,
        }


def _resident_bytes() -> int:
    """Return the memory of this process that is in RAM; raise OSError."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE
