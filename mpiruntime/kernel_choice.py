"""Agree on the kernels of all ranks, from a file of this machine or from a measurement at the start."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

import torch

from ollampi.kernels import choice, native
from ollampi.kernels.choice import FORMATS, Choice, counts
from ollampi.mpiruntime.communicator import Communicator


def choose_kernels(comm: Communicator, folder: Path | None) -> Choice:
    """Return the choice of all ranks; collective.

    It is rank 0's: from the file that an earlier start left in its folder, or measured while all ranks measure, so that
    they share caches and memory as they will. folder: None for nowhere; one that cannot be read or written counts so.
    """
    known = _read(folder, comm.size) if comm.rank == 0 else None
    told = comm.collect(b"" if known is None else _encode(known))[0]
    if told:
        return _decode(told)
    mine = choice.measure()
    first = _decode(comm.collect(_encode(mine))[0])
    if comm.rank == 0 and folder is not None:
        _write(folder, comm.size, first)
    return first


def machine(ranks: int) -> str:
    """Return what a measurement is valid for: processor, instructions, ranks and their threads, and versions."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
        level = native.LEVEL_NAMES[native.level()] if native.library() else "no library"
        threads = f"{ranks} x {torch.get_num_threads()} threads"
        return f"{model}, {level}, {threads}, torch {torch.__version__}, {native.INTERFACE}"
    return ""


def _read(folder: Path | None, ranks: int) -> Choice | None:
    """Return what the file says of this machine, or None."""
    if folder is None:
        return None
    try:
        return _decode(json.dumps(_known(folder / "kernels.json")[machine(ranks)]).encode())
    except (KeyError, ValueError):
        return None


def _known(file: Path) -> dict[str, dict[str, int]]:
    """Return what the file says of all machines, without what cannot be a choice."""
    with suppress(OSError, ValueError, RecursionError):
        read = json.loads(file.read_text()) if file.is_file() else None  # opening a pipe would block for ever
        if isinstance(read, dict):
            return {name: most for name, most in read.items() if _counts_all(most)}
    return {}


def _counts_all(most: object) -> bool:
    return isinstance(most, dict) and all(isinstance(count, int) for count in most.values())


def _write(folder: Path, ranks: int, found: Choice) -> None:
    """Add this machine to the file; another start may do so at the same time, then one of them is measured again."""
    file, own = folder / "kernels.json", folder / f".kernels-{secrets.token_hex(4)}"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            own.write_text(json.dumps({**_known(file), machine(ranks): found.most}, indent=1))
            os.replace(own, file)
        finally:
            own.unlink(missing_ok=True)


def _encode(found: Choice) -> bytes:
    return json.dumps(found.most).encode()


def _decode(message: bytes) -> Choice:
    """Return the choice that a message or file holds; raise ValueError where it holds none."""
    most = json.loads(message)
    if not isinstance(most, dict) or not all(n in FORMATS and c in (0, *counts(n)) for n, c in most.items()):
        raise ValueError(f"no choice of kernels: {message!r}")
    return Choice(most)
