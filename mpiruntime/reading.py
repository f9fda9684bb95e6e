"""Bring the bytes of files to the ranks: each reads its own, or rank 0 reads for all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import CheckpointError, OllampiError

T = TypeVar("T")
Task = tuple[memoryview, int]  # what is to be filled, from which place of a file on

_MOST_OPEN = 64  # files at a time
_TASK_BYTES = 4 << 20  # what one of several threads reads at a time
_MEETING = -1  # in the place of a number of bytes
_ERROR = b"!"  # begins what a rank says that cannot go on; any other message is JSON or empty


class Reading(Protocol):
    """How the bytes of a load come to this rank. `alone`: whether no other rank takes part in what this one reads."""

    alone: bool

    @property
    def bytes_read(self) -> int:
        """Return the bytes that this rank has read from files."""

    def together(self, rows: range) -> range:
        """Return the rows of a tensor to go over where this rank wants some; collective unless `alone`."""

    def fill(self, out: Tensor, path: Path, offset: int, name: str) -> None:
        """Fill `out`, uint8 and contiguous, with the bytes of a file from an offset on; collective unless `alone`.

        name: of the tensor, for errors. Raise CheckpointError where the file cannot be read or ends before.
        """

    def finish(self) -> None:
        """Say that this rank reads no more; collective unless `alone`. Raise CheckpointError where another failed."""

    def give_up(self, error: Exception) -> None:
        """Let the other ranks know why this one will not take part any more."""


class Files:
    """Files that this rank reads itself, with threads where there is much to read; they stay open until `close`.

    pause: called before every few MiB; what it raises ends the reading.
    """

    alone = True

    def __init__(self, threads: int = 1, pause: Callable[[], None] = lambda: None) -> None:
        self.bytes_read = 0
        self._pause = pause
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._open: dict[Path, int] = {}

    def together(self, rows: range) -> range:
        """Return the rows."""
        return rows

    def fill(self, out: Tensor, path: Path, offset: int, name: str) -> None:
        """Fill `out` with the bytes of a file; raise CheckpointError."""
        view = out.numpy().data
        try:
            file = self._file(path)
            tasks = [(view[at : at + _TASK_BYTES], offset + at) for at in range(0, len(view), _TASK_BYTES)]
            got = sum(self._map(lambda task: self._task(file, *task), tasks))
        except OSError as e:
            raise CheckpointError(
                f"{path}: tensor {name!r} cannot be read: {e.strerror}; check the file and its file system"
            ) from e
        self.bytes_read += got
        if got < len(view):
            raise CheckpointError(
                f"{path}: tensor {name!r} ends after {got} of {len(view)} bytes; fetch the file again"
            )

    def finish(self) -> None:
        """Do nothing."""

    def give_up(self, error: Exception) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close the files, and end the threads."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __del__(self) -> None:
        self.close()

    def _file(self, path: Path) -> int:
        """Return the open file; raise OSError."""
        if path not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self.close()
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[path]

    def _map(self, work: Callable[[Task], int], tasks: list[Task]) -> Iterable[int]:
        """Return what `work` returns for each task, done by all threads where there are enough."""
        if self._threads == 1 or len(tasks) < 2:
            return map(work, tasks)
        self._pool = self._pool or ThreadPoolExecutor(self._threads, "reading")
        return self._pool.map(work, tasks)

    def _task(self, file: int, view: memoryview, offset: int) -> int:
        """Return what `_read` does, after a pause."""
        self._pause()
        return _read(file, view, offset)


def _read(file: int, view: memoryview, offset: int) -> int:
    """Return how many bytes of the view were filled: all, unless the file ends; raise OSError."""
    got = 0
    while got < len(view):
        part = os.preadv(file, [view[got:]], offset + got)
        if part == 0:
            break
        got += part
    return got


class Scattered:
    """Files that rank 0 reads for all, for file systems that many readers make slow. All ranks make the same calls.

    Rank 0 says what comes next: bytes, or a meeting, at which ranks tell each other what they want and what failed. A
    rank that fails takes what comes until the next meeting.
    """

    alone = False

    def __init__(self, comm: Communicator, files: Files) -> None:
        self._comm = comm
        self._files = files
        self._over = False

    @property
    def bytes_read(self) -> int:
        """Return the bytes that this rank has read from files: 0 on all but rank 0."""
        return self._files.bytes_read

    def together(self, rows: range) -> range:
        """Return the rows from the first to the last that any rank wants; collective."""
        self._next(_MEETING)
        told = [range(*json.loads(m)) for m in self._meet(json.dumps([rows.start, rows.stop]).encode())]
        wanted = [some for some in told if some] or [range(0)]
        return range(min(some.start for some in wanted), max(some.stop for some in wanted))

    def fill(self, out: Tensor, path: Path, offset: int, name: str) -> None:
        """Fill `out` with the bytes of a file on rank 0's host; collective."""
        if self._comm.rank == 0:
            self._files.fill(out, path, offset, name)
        if self._next(len(out)) == _MEETING:
            self._meet(b"")  # where rank 0 says why it cannot go on
        self._comm.share(out)

    def finish(self) -> None:
        """Wait until all ranks have read everything; collective. Raise CheckpointError where one failed."""
        self._next(_MEETING)
        self._meet(b"")
        self._over = True

    def give_up(self, error: Exception) -> None:
        """Tell the other ranks at the next meeting why this one will not go on, unless they know."""
        if self._over:
            return
        text = str(error) if isinstance(error, OllampiError) else f"rank {self._comm.rank}: {error!r}"
        with suppress(OllampiError):
            while (size := self._next(_MEETING)) != _MEETING:
                self._comm.share(torch.empty(size, dtype=torch.uint8))
            self._meet(_ERROR + text.encode())

    def _next(self, size: int) -> int:
        """Return what comes next on all ranks, as rank 0 passes it: so many bytes, or a meeting; waits quietly."""
        return int(self._comm.broadcast(str(size).encode() if self._comm.rank == 0 else None))

    def _meet(self, message: bytes) -> list[bytes]:
        """Return the messages of all ranks; raise CheckpointError with the first error among them. Collective."""
        told = self._comm.collect(message)
        failed = [m.removeprefix(_ERROR) for m in told if m.startswith(_ERROR)]
        if failed:
            self._over = True
            raise CheckpointError(failed[0].decode())
        return told


def with_reading(
    comm: Communicator, load: str, work: Callable[[Reading], T], pause: Callable[[], None] = lambda: None
) -> T:
    """Return what `work` makes of the files of a load: `slices`, or `scatter`, where all ranks work alike; collective.

    pause: as for Files. With `scatter`, where `work` raises on any rank, every rank raises, those that did not fail a
    CheckpointError.
    """
    files = Files(torch.get_num_threads(), pause)
    reading: Reading = Scattered(comm, files) if load == "scatter" else files
    try:
        result = work(reading)
        reading.finish()
    except Exception as e:
        reading.give_up(e)
        raise
    finally:
        files.close()
    return result
