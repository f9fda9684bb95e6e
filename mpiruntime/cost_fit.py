"""Fit the constants of the cost model to measured steps, and keep them in a file of this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ollampi.mpiruntime.cost_model import ASSUMED, NAMES, Constants, Site, Work, counts, step_s
from ollampi.mpiruntime.machine_file import processor, read_entry, write_entry
from ollampi.mpiruntime.memory import BITS

FILE = "cost.json"
OF_LINK = ("far_trip_s", "far_byte_s")  # each link between hosts has its own
_PULL = 3e-3  # how much a constant that is off by its whole counts, beside a point that is off by its whole
_ROUNDS = 12
_HOST_STARTS = (0.03, 0.3, 0.6, 1.0)  # of core_byte_s: which of both bounds a step depends on where a fit begins
_TIGHT = 1e-10

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A step that was measured. link: the name of the link between its hosts, where there are several."""

    work: Work
    site: Site
    seconds: float
    link: str = ""


@dataclass(frozen=True)
class Fit:
    """Constants of a machine, the far ones of no link in particular; links: those of each link by its name."""

    constants: Constants
    links: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, link: str) -> Constants:
        """Return the constants with those of a link, if it is known."""
        return replace(self.constants, **self.links.get(link, {}))

    def seconds(self, point: Point) -> float:
        """Return what a point's step should take."""
        return step_s(point.work, point.site, self.of(point.link))


def fit(points: Sequence[Point], start: Constants = ASSUMED) -> Fit:
    """Return the constants, none negative, by which the squares of the points' relative errors are least.

    Which bound or way a step takes depends on the constants: it is that of the round before, until nothing changes.
    A constant that no point tells of stays near the one it starts from.
    """
    links = sorted({point.link for point in points if point.link})
    first = {link: {name: getattr(start, name) for name in OF_LINK} for link in links}
    found = [
        _settled(points, Fit(replace(start, host_byte_s=part * start.core_byte_s), first)) for part in _HOST_STARTS
    ]
    return min(found, key=lambda each: _loss(points, each))


def nnls(a: Matrix, b: Matrix) -> Matrix:
    """Return the x [n] >= 0 with the least |a x - b| for a [m, n] and b [m].

    The method of active sets: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23.
    """
    x = np.zeros(a.shape[1])
    free = np.zeros(a.shape[1], dtype=bool)
    for _ in range(3 * a.shape[1]):
        gain = a.T @ (b - a @ x)
        if free.all() or gain[~free].max() <= _TIGHT * max(1.0, float(np.abs(b).max())):
            break
        free[np.argmax(np.where(free, -math.inf, gain))] = True
        while True:
            best = np.zeros_like(x)
            best[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            below = free & (best <= 0)
            if not below.any():
                x = best
                break
            step = float((x[below] / (x[below] - best[below])).min())  # as far as none becomes negative
            x = x + step * (best - x)
            free &= x > _TIGHT * max(1.0, float(x.max()))
            x[~free] = 0.0
    return x


def fit_key(quantize: str, dtype: str) -> str:
    """Return what a fit is valid for: what the machine computes with, and the format of the weights.

    quantize, dtype: as settings have them; what the checkpoint decides counts as bfloat16.
    """
    plain = "bfloat16" if dtype == "auto" else dtype
    return f"{processor()}, {quantize if quantize in BITS else plain}"


def read_fit(folder: Path | None, key: str) -> Fit | None:
    """Return what the file in a folder says of a machine and format, or None where it says nothing that can be."""
    entry = read_entry(folder, FILE, key)
    return None if entry is None else _decoded(entry)


def write_fit(folder: Path, key: str, found: Fit) -> None:
    """Add a fit to the file; one that cannot be written is left."""
    write_entry(folder, FILE, key, {"constants": asdict(found.constants), "links": dict(found.links)}, _is_fit)


def _settled(points: Sequence[Point], found: Fit) -> Fit:
    """Return the fit that rounds from another one come to."""
    for _ in range(_ROUNDS):
        better = _round(points, found)
        if _loss(points, better) >= _loss(points, found) * (1 - 1e-9):
            return min(better, found, key=lambda each: _loss(points, each))
        found = better
    return found


def _round(points: Sequence[Point], known: Fit) -> Fit:
    """Return the fit to points that take the ways which are best by what is known."""
    columns = _flat(known)
    rows = np.zeros((len(points) + len(columns), len(columns)))
    wanted = np.ones(len(rows))
    index = {key: i for i, key in enumerate(columns)}
    for row, point in enumerate(points):
        for name, count in counts(point.work, point.site, known.of(point.link)).items():
            key = (point.link if name in OF_LINK else "", name)
            rows[row, index[key]] += count * _unit(columns[key], name) / point.seconds
    for (_, name), column in index.items():
        value = columns[(_, name)]
        rows[len(points) + column, column] = _PULL
        wanted[len(points) + column] = _PULL * value / _unit(value, name)
    solved = nnls(rows, wanted)
    return _unflat({key: float(solved[i]) * _unit(columns[key], key[1]) for key, i in index.items()})


def _unit(value: float, name: str) -> float:
    """Return in what a constant is counted, so that all are of the order of 1."""
    return value if value > 0 else float(getattr(ASSUMED, name))


def _flat(found: Fit) -> dict[tuple[str, str], float]:
    """Return the constants by link, "" for those of the machine, and name."""
    own = {("", name): getattr(found.constants, name) for name in NAMES}
    return own | {(link, name): value for link, values in found.links.items() for name, value in values.items()}


def _unflat(values: Mapping[tuple[str, str], float]) -> Fit:
    """Return the fit of such constants."""
    links: dict[str, dict[str, float]] = {}
    for (link, name), value in values.items():
        if link:
            links.setdefault(link, {})[name] = value
    return Fit(Constants(**{name: values["", name] for name in NAMES}), links)


def _loss(points: Sequence[Point], found: Fit) -> float:
    """Return the sum of the squares of the relative errors."""
    return sum((found.seconds(point) / point.seconds - 1) ** 2 for point in points)


def _decoded(entry: Any) -> Fit | None:
    """Return the fit in an entry of the file, None where it is none."""
    if not _is_fit(entry):
        return None
    return Fit(Constants(**entry["constants"]), {link: dict(values) for link, values in entry["links"].items()})


def _is_fit(entry: Any) -> bool:
    """Return whether a value of JSON is what write_fit wrote."""
    if not isinstance(entry, dict) or not isinstance(entry.get("links"), dict):
        return False
    return _is_table(entry.get("constants"), NAMES) and all(_is_table(v, OF_LINK) for v in entry["links"].values())


def _is_table(values: Any, names: Sequence[str]) -> bool:
    """Return whether a value has a time under each name, and no other."""
    if not isinstance(values, dict) or set(values) != set(names):
        return False
    return all(isinstance(v, (int, float)) and math.isfinite(v) and v >= 0 for v in values.values())
