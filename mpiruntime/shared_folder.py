"""Measure what a folder is that hosts share: whether all see its files, and how fast they write and read."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from ollampi.mpiruntime.communicator import Communicator

_PIECE_BYTES = 4 << 20


def measure_folder(comm: Communicator, folder: Path, leaders: Sequence[int], size_bytes: int) -> list[dict[str, Any]]:
    """Return what each leader, the first rank of its host, found of a folder, in their order; collective, on all alike.

    Each writes a file, and reads that of the next one, so that it is in no cache of its own: write_s and read_s for
    so many bytes; or `error`. free: bytes left. Files are removed before the end.
    """
    mine: dict[str, Any] = {}
    name = comm.collect(secrets.token_hex(8).encode())[0].decode()  # rank 0's, for all
    place = leaders.index(comm.rank) if comm.rank in leaders else None
    paths = [folder / f".ollampi-doctor-{name}-{number}" for number in range(len(leaders))]
    try:
        if place is not None:
            mine |= _tried(lambda: _write(paths[place], place, size_bytes))
        written = [json.loads(text) for text in comm.collect(json.dumps(mine).encode())]
        if place is not None and all("error" not in written[leader] for leader in leaders):
            after = (place + 1) % len(leaders)
            mine |= _tried(lambda: _read(paths[after], after, size_bytes))
        told = [json.loads(text) for text in comm.collect(json.dumps(mine).encode())]
    finally:
        if place is not None:
            with suppress(OSError):
                paths[place].unlink()
    return [told[leader] for leader in leaders]


def _tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what work returns, or why it could not."""
    try:
        return work()
    except OSError as error:
        return {"error": f"{error.strerror or error}: {error.filename}" if error.filename else str(error)}


def _write(path: Path, place: int, size_bytes: int) -> dict[str, Any]:
    """Return the seconds in which a file reached the disk; raise OSError."""
    piece = bytes([place % 251 + 1]) * _PIECE_BYTES
    began = perf_counter()
    with path.open("xb", buffering=0) as file:
        for at in range(0, size_bytes, _PIECE_BYTES):
            file.write(piece[: size_bytes - at])
        os.fsync(file.fileno())
        seconds = perf_counter() - began
        left = os.fstatvfs(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # where it is read on this host
    return {"write_s": seconds, "free": left.f_bavail * left.f_frsize}


def _read(path: Path, place: int, size_bytes: int) -> dict[str, Any]:
    """Return the seconds in which a file was read; raise OSError, also where it is not as it was written."""
    began, passed = perf_counter(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            passed += len(piece)
            if piece[:1] != bytes([place % 251 + 1]):
                raise OSError(f"{path} does not hold what another host wrote")
    if passed != size_bytes:
        raise OSError(f"{path} has {passed} bytes of the {size_bytes} that another host wrote")
    return {"read_s": perf_counter() - began}
