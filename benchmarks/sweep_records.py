"""What a sweep has measured, as lines of JSON: each is written when its point is done, and found again by its key."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sweep_points import OF_LOAD, Load, Point, Server

from ollampi.mpiruntime.errors import ConfigError

NAME = "sweep"


@dataclass(frozen=True)
class Repeat:
    """One round of requests at once.

    wall_s: from the first request sent until the last answer was there; first_s, token_s: of each request, the time to
    its first token and between two tokens; tokens: of all answers; compute_s, exchange_s: of each rank, in forward
    passes, waiting for other ranks in the latter; other_s: of rank 0 between forward passes.
    """

    wall_s: float
    first_s: list[float]
    token_s: list[float]
    tokens: int
    compute_s: list[float]
    exchange_s: list[float]
    other_s: float


@dataclass(frozen=True)
class Record:
    """What came of a point; error: why it failed, "" where it did not, and then there are repeats.

    groups: the ranks of each replica; shard_bytes, process_bytes: of each rank, its weights and cache, and its process;
    start_s: until the server was ready; seconds: what measuring took; where: host, processor, cores.
    """

    key: str
    model: str
    digest: str
    point: Point
    repeats: list[Repeat] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)
    shard_bytes: list[int] = field(default_factory=list)
    process_bytes: list[int] = field(default_factory=list)
    start_s: float = 0.0
    seconds: float = 0.0
    error: str = ""
    where: str = ""
    at: str = ""

    def line(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self) | {"point": self.point.values | {"start": self.point.server.start}}) + "\n"


def record_of(line: str) -> Record | None:
    """Return the record of a line, None where it is none: one that was cut off when its sweep was killed."""
    try:
        values: dict[str, Any] = json.loads(line)
        of_point = values["point"]
        server = Server(**{name: value for name, value in of_point.items() if name not in OF_LOAD})
        load = Load(**{name: of_point[name] for name in OF_LOAD})
        repeats = [Repeat(**repeat) for repeat in values["repeats"]]
        return Record(**values | {"point": Point(server, load), "repeats": repeats})
    except (ValueError, TypeError, KeyError):
        return None


class Records:
    """The records in a folder; every writer has a file of its own, so jobs on several hosts do not mix their lines."""

    def __init__(self, folder: Path, writer: str = "") -> None:
        self.folder = folder
        self._path = folder / f"{NAME}{'-' * bool(writer)}{writer}.jsonl"

    def read(self) -> dict[str, Record]:
        """Return what is known by key: the latest success, else the latest failure; its keys in the order of lines."""
        found: dict[str, Record] = {}
        for path in sorted(self.folder.glob(f"{NAME}*.jsonl")):
            for line in path.read_text(errors="replace").splitlines():
                record = record_of(line)
                if record and (not record.error or record.key not in found or found[record.key].error):
                    found[record.key] = record
        return found

    def add(self, record: Record) -> None:
        """Append a record; it is on disk when this returns."""
        with self._opened() as file:
            size = os.fstat(file).st_size
            cut_off = bool(size) and os.pread(file, 1, size - 1) != b"\n"
            rest = ("\n" * cut_off + record.line()).encode()
            while rest:  # a disk that is nearly full takes a part, and says so only to the next call
                rest = rest[os.write(file, rest) :]
            os.fsync(file)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other sweeps from measuring for the same file until the block ends: they would disturb each other.

        Raise ConfigError where another does. The kernel lets go of it with this process.
        """
        with self._opened() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise ConfigError(
                    f"another sweep is measuring in {self.folder}; wait until it is done, or give another folder=PATH"
                ) from e
            except OSError:  # a file system without locks
                pass
            yield

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Give the descriptor of the file, which is made unless it is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            yield file
        finally:
            os.close(file)


def merged(records: Iterable[Record]) -> list[Record]:
    """Return a record for each point, with the repeats of all starts of its server; failed where all of them have."""
    found: dict[Point, Record] = {}
    for record in records:
        point = record.point.at_start(0)
        before = found.get(point)
        if before is None or (before.error and not record.error):
            found[point] = replace(record, point=point)
        elif not record.error:
            found[point] = replace(before, repeats=before.repeats + record.repeats)
    return list(found.values())


def of_sweep(known: dict[str, Record], keys: Iterable[str]) -> list[Record]:
    """Return the records of some keys as far as they are known, in the order of the keys."""
    return [known[key] for key in keys if key in known]
