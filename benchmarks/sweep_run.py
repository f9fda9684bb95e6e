"""Go through the points of a sweep: one server for all that share its settings, a record behind each point."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from sweep_load import measure
from sweep_points import Point, Server, Sweep
from sweep_records import Record, Records, Repeat
from sweep_server import Running, Subject, SweepError, running

Start = Callable[[Server], AbstractContextManager[Running]]
Say = Callable[[str], None]
_START_S, _PROMPT_S, _TOKEN_S = 10.0, 1e-3, 2e-2  # assumed where nothing was measured yet


def todo(sweep: Sweep, digest: str, known: dict[str, Record]) -> list[Point]:
    """Return the points that are still to be measured, in their order; those that failed only with retry."""
    wanted = [point for point in sweep.points if _is_wanted(sweep, sweep.key(point, digest))]
    found = [(point, known.get(sweep.key(point, digest))) for point in wanted]
    return [point for point, record in found if record is None or (record.error and sweep.options["retry"])]


def _is_wanted(sweep: Sweep, key: str) -> bool:
    return not sweep.options["only"] or key in sweep.options["only"]


def time_left_s(points: Sequence[Point], done: Sequence[Record], rounds: int, started: Server | None = None) -> float:
    """Return about how long the points take, by what those that are done took; started: a server that runs already."""
    good = [record for record in done if not record.error]
    starts = [record.start_s for record in good if record.start_s]
    start_s = sum(starts) / len(starts) if starts else _START_S
    planned_s = sum(_planned_s(record.point, rounds) for record in good)
    factor = sum(record.seconds for record in good) / planned_s if planned_s else 1.0
    servers = {point.server for point in points} - {started}
    return len(servers) * start_s + factor * sum(_planned_s(point, rounds) for point in points)


def _planned_s(point: Point, rounds: int) -> float:
    """Return what so many rounds would take on some machine."""
    load = point.load
    return rounds * (load.concurrency * load.prompt * _PROMPT_S + load.output * _TOKEN_S)


def span_text(seconds: float) -> str:
    """Return a time for people."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def machine() -> str:
    """Return what is measured on: host, processor, cores of this process."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.node()}, {(names or [platform.machine()])[0]}, {len(os.sched_getaffinity(0))} cores"


class Run:
    """Measure points of a sweep; start and say can be other ones in tests."""

    def __init__(self, sweep: Sweep, subject: Subject, records: Records, say: Say, start: Start | None = None) -> None:
        self._sweep, self._subject, self._records, self._say = sweep, subject, records, say
        self._start = start or self._running
        self._done: list[Record] = []
        self._where = machine()

    def all(self, points: Sequence[Point]) -> list[Record]:
        """Return the records of all points; each is written before the next point begins."""
        left = self.possible(points)
        while left:
            self._serve(left)
        return self._done

    def possible(self, points: Sequence[Point]) -> list[Point]:
        """Return the points that the model can do; the others are recorded as failed."""
        left = list(points)
        for point in points:
            if reason := self._subject.refuses(point):
                left.remove(point)
                self._note(self._failed(point, reason), left)
        return left

    def _running(self, wanted: Server) -> AbstractContextManager[Running]:
        options = self._sweep.options
        settings = self._sweep.server_settings()
        return running(wanted, self._subject, settings, options["ready_s"], options["request_s"])

    def _serve(self, left: list[Point]) -> None:
        """Measure the points of the first one's server, as far as one server gets; take away what is done."""
        server = left[0].server
        mine = [point for point in left if point.server == server]
        try:
            with self._start(server) as found:
                for point in mine:
                    left.remove(point)
                    self._note(self._measured(found, point), left)
                    if not found.usable:
                        return
        except SweepError as e:
            for point in mine:
                left.remove(point)
                self._note(self._failed(point, str(e)), left)

    def _measured(self, server: Running, point: Point) -> Record:
        """Return the record of a point."""
        options, began = self._sweep.options, time.monotonic()
        try:
            repeats = measure(server, point.load, options["warmups"], options["repeats"])
            return self._record(point, repeats, server, time.monotonic() - began)
        except SweepError as e:
            return self._failed(point, str(e))

    def _record(self, point: Point, repeats: list[Repeat], server: Running, seconds: float) -> Record:
        """Return what was measured, with what the server holds."""
        return Record(
            self._sweep.key(point, self._subject.model.digest),
            self._subject.model.name.short,
            self._subject.model.digest,
            point,
            repeats,
            server.groups,
            server.shard_bytes,
            server.process_bytes(),
            server.start_s,
            seconds,
            where=self._where,
            at=now_text(),
        )

    def _failed(self, point: Point, error: str) -> Record:
        model = self._subject.model
        key = self._sweep.key(point, model.digest)
        return Record(key, model.name.short, model.digest, point, error=error, where=self._where, at=now_text())

    def _note(self, record: Record, left: Sequence[Point]) -> None:
        """Write a record, and say how far the sweep is."""
        self._records.add(record)
        self._done.append(record)
        rounds = self._sweep.options["warmups"] + self._sweep.options["repeats"]
        running = None if record.error else record.point.server
        left_s = time_left_s(left, self._done, rounds, running)
        count = f"[{len(self._done)}/{len(self._done) + len(left)}]"
        last = f"{span_text(left_s)} left" if left else "done"
        self._say(f"{count} {record.point.text}: {_told(record)}, {last}")


def _told(record: Record) -> str:
    """Return what came of a point, in a few words."""
    if record.error:
        return f"failed: {record.error}"
    tokens = sum(repeat.tokens for repeat in record.repeats)
    return f"{tokens / sum(repeat.wall_s for repeat in record.repeats):.1f} tokens/s"


def now_text() -> str:
    """Return the time of a record; no two of a point have the same."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
