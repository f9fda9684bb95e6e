"""Say how sums of each size are made: by which algorithm, in the codes of which level; chosen from measured times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ollampi.mpiruntime.exchange_settings import ExchangeSettings

BENEATH = "beneath"  # the algorithm that is the communicator's beneath: MPI's own, or shared memory
SIZES = (8 << 10, 64 << 10, 1 << 20)  # bytes in fp32: a token of width 2048, 8 and 128 of them
_CLEARLY = 0.9  # of the time without codes is what codes must take to pay


@dataclass(frozen=True)
class Choice:
    """How sums are made: by one of ALGORITHMS at a level of the codecs, or by what lies beneath, at level 0."""

    algorithm: str
    level: int


Figures = Mapping[Choice, Mapping[int, float]]  # the seconds of a sum by its size in bytes, on the slowest rank


@dataclass(frozen=True)
class Plan:
    """The choice for each size: choices[i] serves sums up to bounds[i] bytes in fp32, the last one all larger ones."""

    bounds: tuple[int, ...]
    choices: tuple[Choice, ...]

    def of(self, size_bytes: int) -> Choice:
        """Return the choice for a sum of so many bytes in fp32."""
        for bound, choice in zip(self.bounds, self.choices, strict=False):
            if size_bytes <= bound:
                return choice
        return self.choices[-1]


def always(choice: Choice) -> Plan:
    """Return the plan that makes all sums in one way."""
    return Plan((), (choice,))


def make_plan(figures: Figures, strategy: str, level: int) -> Plan:
    """Return the plan that follows from the figures; the same on all ranks where these are.

    strategy: none takes the fastest way at level 0, compressed the fastest one at `level`, auto the latter where it is
    faster by a tenth.
    """
    sizes = sorted({size for seconds in figures.values() for size in seconds})
    bounds = tuple(math.isqrt(small * large) for small, large in pairwise(sizes))
    return Plan(bounds, tuple(_choice(figures, size, strategy, level) for size in sizes))


def exact_plan(figures: Figures) -> Plan:
    """Return the plan of the fastest ways at level 0."""
    return make_plan(figures, "none", 0)


def fastest(figures: Figures, size: int, level: int) -> Choice:
    """Return the choice of a level that takes the least time for a size; the level has figures for each size."""
    known = [choice for choice, seconds in figures.items() if choice.level == level and size in seconds]
    return min(known, key=lambda choice: figures[choice][size])


def wanted_levels(settings: ExchangeSettings) -> Sequence[int]:
    """Return the levels that are worth measuring."""
    return (0,) if settings.communication_strategy == "none" else tuple(dict.fromkeys((0, settings.compression_level)))


def _choice(figures: Figures, size: int, strategy: str, level: int) -> Choice:
    """Return the choice for a size."""
    exact = fastest(figures, size, 0)
    if strategy == "none" or level == 0:
        return exact
    coded = fastest(figures, size, level)
    if strategy == "compressed" or figures[coded][size] < _CLEARLY * figures[exact][size]:
        return coded
    return exact
