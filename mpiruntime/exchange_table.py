"""Keep what was measured at the start in a file, for the next start in a world of the same kind."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.algorithms import ALGORITHMS
from ollampi.mpiruntime.exchange_plan import BENEATH, SIZES, Choice, Figures

_MOST_BYTES = 1 << 20


class UnfitTable(Exception):
    """A file has no figures for this world; the message says why."""


def read_table(path: Path, world: Mapping[str, Any]) -> dict[Choice, dict[int, float]]:
    """Return the figures of a file; raise UnfitTable where it is of another world, damaged, or cannot be read."""
    try:
        if not path.exists():
            raise UnfitTable("was not there")
        if not _possible(path):
            raise UnfitTable("is no regular file of less than 1 MiB")
        table = json.loads(path.read_text())
        of, listed = table["world"], table["seconds"]
        figures = {
            Choice(str(row["algorithm"]), int(row["level"])): {int(n): float(s) for n, s in row["by_bytes"].items()}
            for row in listed
        }
    except OSError as e:
        raise UnfitTable(f"cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise UnfitTable("is damaged") from e
    if of != world:
        raise UnfitTable("is of another world")
    if not _complete(figures, int(world["level"])):
        raise UnfitTable("is damaged")
    return figures


def write_table(path: Path, world: Mapping[str, Any], figures: Figures) -> None:
    """Write the figures, whole or not at all; raise OSError, also where something is there that can be no table."""
    if path.exists() and not _possible(path):
        raise FileExistsError(errno.EEXIST, "it is something else")
    path = path.resolve()
    rows = [{"algorithm": c.algorithm, "level": c.level, "by_bytes": dict(s)} for c, s in figures.items()]
    own = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        own.write_text(json.dumps({"world": dict(world), "seconds": rows}, indent=1) + "\n")
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)


def _possible(path: Path) -> bool:
    """Return whether what is there may be a table; raise OSError."""
    return path.is_file() and path.stat().st_size <= _MOST_BYTES


def _complete(figures: Figures, level: int) -> bool:
    """Return whether the figures are times of known ways, with one for each size at level 0 and at `level`."""
    known = all(choice.algorithm in (BENEATH, *ALGORITHMS) and 0 <= choice.level <= 4 for choice in figures)
    exact = all(choice.level == 0 for choice in figures if choice.algorithm == BENEATH)
    times = [(size, s) for seconds in figures.values() for size, s in seconds.items()]
    real = all(size in SIZES and math.isfinite(s) and s > 0 for size, s in times)
    pairs = [(one, pair) for one in (0, level) for pair in pairwise(SIZES)]  # sizes between are between times of a way
    there = all(any(c.level == one and set(pair) <= s.keys() for c, s in figures.items()) for one, pair in pairs)
    return known and exact and real and there
