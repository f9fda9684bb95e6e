"""Measure what sums take over a link, in all ways that may be chosen, or read it from the file that keeps it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ollampi.kernels.codec import num_bytes
from ollampi.kernels.codecs import codec_of
from ollampi.mpiruntime.algorithms import ALGORITHMS, Room
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.exchange_plan import BENEATH, SIZES, Choice, Figures, hopeless, sent_bytes, wanted_levels
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.exchange_table import UnfitTable, read_table, write_table
from ollampi.mpiruntime.link import Link
from ollampi.mpiruntime.measuring import Sum, measure, micros

_TINY_BYTES = 8


@dataclass(frozen=True)
class Figured:
    """The figures, the same on all ranks, and in words what the link is like and where they come from."""

    figures: Figures
    told: str


def figures_of(
    comm: Communicator, beneath: Communicator, link: Link, settings: ExchangeSettings, layout: list[int]
) -> Figured:
    """Return the figures of sums over the link and by `beneath`; collective over the ranks of all three, the same ones.

    layout: the host of each rank of the job, as a number. Only rank 0 reads and writes the file of the settings.
    """
    path = None if settings.table is None else Path(os.path.expanduser(settings.table))
    level = wanted_levels(settings)[-1]
    world = {
        "hosts": layout,
        "link": settings.link,
        "interface": settings.interface,
        "strategy": settings.communication_strategy,
        "level": level,
        "sizes": list(SIZES),
    }
    read, why = _read(comm, path, world)
    if read is not None:
        return Figured(read, f"{_like(comm, link, read)}, as {path} has it")
    sums: dict[Choice, Sum] = {Choice(BENEATH, 0): beneath.all_reduce}
    for one in wanted_levels(settings):
        sums |= {Choice(name, one): partial(_sum, link, Choice(name, one), Room()) for name in ALGORITHMS}
    figures = measure(sums, comm, SIZES, partial(hopeless, comm.size))
    told = _like(comm, link, figures)
    if path is not None:
        told += f"; {path} {why}: {_write(comm, path, world, figures)}"
    return Figured(figures, told)


def _sum(link: Link, choice: Choice, room: Room, x: Tensor) -> Tensor:
    """Return the sum of x [n] over the link; collective."""
    return ALGORITHMS[choice.algorithm](link, codec_of(choice.level, x.device), x, room)


def _like(comm: Communicator, link: Link, figures: Figures) -> str:
    """Return in words what the link is like: the time of a few bytes, and the best rate seen; collective.

    The time is measured also where the figures are read, since it takes no time.
    """
    tiny = Choice("one_step", 0)
    took = measure({tiny: partial(_sum, link, tiny, Room())}, comm, [_TINY_BYTES])[tiny][_TINY_BYTES]
    size = SIZES[-1]
    rates = [
        sent_bytes(choice.algorithm, num_bytes(choice.level, size // 4), link.size) / seconds[size]
        for choice, seconds in figures.items()
        if choice.algorithm != BENEATH and size in seconds
    ]
    rate = f", {max(rates) * 8e-6:.0f} Mbit/s each way" if rates else ""
    return f"{_TINY_BYTES} bytes in {micros(took)} us{rate}"


def _read(
    comm: Communicator, path: Path | None, world: dict[str, Any]
) -> tuple[dict[Choice, dict[int, float]] | None, str]:
    """Return the figures that rank 0 found in the file, the same on all ranks, or None and why; collective."""
    mine: dict[str, Any] = {"why": ""}
    if comm.rank == 0 and path is not None:
        try:
            figures = read_table(path, world)
            mine = {"rows": [(asdict(choice), list(seconds.items())) for choice, seconds in figures.items()]}
        except UnfitTable as e:
            mine = {"why": str(e)}
    told = json.loads(comm.collect(json.dumps(mine).encode())[0])
    if "rows" not in told:
        return None, str(told["why"])
    return {Choice(**choice): {int(n): float(s) for n, s in seconds} for choice, seconds in told["rows"]}, ""


def _write(comm: Communicator, path: Path, world: dict[str, Any], figures: Figures) -> str:
    """Return in words what became of the file. Rank 0 writes it."""
    if comm.rank:
        return ""
    try:
        write_table(path, world, figures)
    except OSError as e:
        return f"measured anew, but it cannot be written: {e.strerror}"
    return "measured anew and written"
