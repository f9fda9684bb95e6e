"""Say how sums of each size are made: by which algorithm, in the codes of which level; chosen from measured times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.shard import Shard

BENEATH = "beneath"  # the algorithm that is the communicator's beneath: MPI's own, or shared memory
# what is measured, bytes in fp32: a token of width 512, 2048, 16384; 32, 128 and 512 tokens of width 2048
SIZES = (2 << 10, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
_CLEARLY = 0.9  # of the time without codes is what codes must take to pay
# From here on, where bandwidth bounds sums, the way that sends the fewest bytes is taken unless another takes less than
# half of its time, also with the sizes measured around. Of its two trips another way saves one at most, and sends more:
# that cannot be twice as fast, but one size alone was seen so on busy machines. MPI's own sum may know a better way.
LARGE = 128 << 10
_THRIFT = 2.0
_HOPELESS, _SMALL = 2.0, 64 << 10  # of smaller sums no way is left out: trips count there, and they take no time


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


def make_plan(figures: Figures, strategy: str, level: int, ranks: int) -> Plan:
    """Return the plan of so many ranks that follows from the figures; the same on all ranks where these are.

    strategy: none takes the best way at level 0, compressed the best one at `level`, auto the latter where it is faster
    by a tenth. Each power of two has a choice of its own, which serves what is nearer to it than to the next one.
    """
    measured = sorted({size for seconds in figures.values() for size in seconds})
    sizes = sorted({*measured, *(1 << i for i in range(measured[0].bit_length(), measured[-1].bit_length()))})
    bounds = tuple(math.isqrt(small * large) for small, large in pairwise(sizes))
    return Plan(bounds, tuple(_choice(figures, size, strategy, level, ranks) for size in sizes))


def exact_plan(figures: Figures, ranks: int) -> Plan:
    """Return the plan of the best ways at level 0."""
    return make_plan(figures, "none", 0, ranks)


def seconds_of(figures: Figures, choice: Choice, size: int) -> float | None:
    """Return what a sum of a size takes, on a line between the sizes measured around it; None where that is unknown."""
    seconds = figures[choice]
    if size in seconds:
        return seconds[size]
    below = max((n for n in seconds if n < size), default=None)
    above = min((n for n in seconds if n > size), default=None)
    if below is None or above is None:
        return None
    return seconds[below] + (seconds[above] - seconds[below]) * (size - below) / (above - below)


def best(figures: Figures, size: int, level: int, ranks: int) -> Choice:
    """Return the choice of a level, which has figures, for a size: the fastest, or for large sums the thriftiest."""
    times = {choice: seconds_of(figures, choice, size) for choice in figures if choice.level == level}
    known = {choice: seconds for choice, seconds in times.items() if seconds is not None}
    fastest = min(known, key=lambda choice: known[choice])
    if size < LARGE:
        return fastest
    sent = {choice: sent_bytes(choice.algorithm, size, ranks) for choice in known}
    thrifty = min((c for c in known if sent[c] == min(sent.values())), key=lambda choice: known[choice])
    around = [n for n in figures[thrifty] if size <= 4 * n <= 16 * size and n in figures[fastest]]
    clearly = all(figures[thrifty][n] > _THRIFT * figures[fastest][n] for n in around)
    return fastest if clearly else thrifty


def sent_bytes(algorithm: str, size: int, ranks: int) -> float:
    """Return about what the busiest rank sends in a sum of vectors whose codes have `size` bytes.

    Infinity for what lies beneath: it may send anything.
    """
    paired = ranks.bit_length() - 1
    beyond = ranks > 1 << paired  # one of the pairs gives the sum to a rank beyond them
    counts = {"one_step": ranks - 1, "doubling": paired + beyond}
    if algorithm == "scattered":
        return 2 * (size - len(Shard(0, ranks).of(size)))
    return counts[algorithm] * size if algorithm in counts else math.inf


def hopeless(ranks: int, size: int, found: Mapping[Choice, float]) -> set[Choice]:
    """Return the ways that need not be tried with sums of more than `size` bytes, by the seconds found for that size.

    Such a way takes more than twice as long as another one of its level that sends no more bytes: one of fewer bytes
    may be slow with small sums and win with large ones. What lies beneath is taken to send as few as any.
    """
    if size < _SMALL:
        return set()
    least = sent_bytes("scattered", size, ranks)
    sent = {c: least if c.algorithm == BENEATH else sent_bytes(c.algorithm, size, ranks) for c in found}
    return {
        c
        for c, seconds in found.items()
        if any(one.level == c.level and sent[one] <= sent[c] and seconds > _HOPELESS * s for one, s in found.items())
    }


def wanted_levels(settings: ExchangeSettings) -> Sequence[int]:
    """Return the levels that are worth measuring."""
    return (0,) if settings.communication_strategy == "none" else tuple(dict.fromkeys((0, settings.compression_level)))


def _choice(figures: Figures, size: int, strategy: str, level: int, ranks: int) -> Choice:
    """Return the choice for a size."""
    exact = best(figures, size, 0, ranks)
    if strategy == "none" or level == 0:
        return exact
    coded = best(figures, size, level, ranks)
    seconds = [seconds_of(figures, choice, size) or 0.0 for choice in (coded, exact)]
    return coded if strategy == "compressed" or seconds[0] < _CLEARLY * seconds[1] else exact
