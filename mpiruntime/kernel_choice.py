"""Agree on the kernels of all ranks, from a file of this machine or from a measurement at the start."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ollampi.kernels import choice
from ollampi.kernels.choice import FORMATS, Choice, counts
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.machine_file import processor, read_entry, write_entry

FILE = "kernels.json"


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
        write_entry(folder, FILE, machine(comm.size), first.most, _counts_all)
    return first


def machine(ranks: int) -> str:
    """Return what a measurement is valid for: what the machine computes with, its ranks and their threads."""
    return f"{processor()}, {ranks} x {torch.get_num_threads()} threads"


def _read(folder: Path | None, ranks: int) -> Choice | None:
    """Return what the file says of this machine, or None."""
    try:
        return _decode(json.dumps(read_entry(folder, FILE, machine(ranks))).encode())
    except ValueError:
        return None


def _counts_all(most: object) -> bool:
    return isinstance(most, dict) and all(isinstance(count, int) for count in most.values())


def _encode(found: Choice) -> bytes:
    return json.dumps(found.most).encode()


def _decode(message: bytes) -> Choice:
    """Return the choice that a message or file holds; raise ValueError where it holds none."""
    most = json.loads(message)
    if not isinstance(most, dict) or not all(n in FORMATS and c in (0, *counts(n)) for n, c in most.items()):
        raise ValueError(f"no choice of kernels: {message!r}")
    return Choice(most)
