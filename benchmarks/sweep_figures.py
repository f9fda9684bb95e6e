"""What follows from the records of a sweep: figures with their spread, where the time goes, speed-ups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median

from sweep_points import Point
from sweep_records import Record, Repeat

_LEAST_NOISE, _FEW_NOISE, _FEW = 0.02, 0.05, 3  # what figures may differ by and be the same; of fewer repeats: more
_CHANCE = 0.05  # a difference that comes about by chance as often as that is none


@dataclass(frozen=True)
class Figure:
    """The median of what the repeats gave, the least and the most; values: what each gave."""

    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """Return the median."""
        return median(self.values)

    @property
    def least(self) -> float:
        """Return the least."""
        return min(self.values)

    @property
    def most(self) -> float:
        """Return the most."""
        return max(self.values)

    def ties(self, other: Figure) -> bool:
        """Return whether the difference is below the noise.

        Repeats that happen to agree are not taken for certainty, and one repeat that was disturbed does not hide what
        all others show: values that overlap differ where their ranks are so by chance in 5 of 100 cases at most.
        """
        if self.value > other.value:
            return other.ties(self)
        noise = _FEW_NOISE if min(len(self.values), len(other.values)) < _FEW else _LEAST_NOISE
        if self.value * (1 + noise) >= other.value * (1 - noise):
            return True
        return self.most >= other.least and by_chance(self.values, other.values) > _CHANCE


def by_chance(low: Sequence[float], high: Sequence[float]) -> float:
    """Return how probable it is that values of the same kind rank so low beside others, or lower.

    Exactly, by the sum of ranks (Mann and Whitney, 1947); equal values share the middle of their ranks.
    """
    every = [*low, *high]
    doubled = [2 * sum(v < value for v in every) + sum(v == value for v in every) + 1 for value in every]
    ways = [Counter({0: 1}), *(Counter[int]() for _ in low)]  # by number of values and sum of their ranks
    for rank in doubled:
        for fewer, more in reversed([*pairwise(ways)]):
            more.update({total + rank: count for total, count in fewer.items()})
    mine = sum(doubled[: len(low)])
    return sum(count for total, count in ways[-1].items() if total <= mine) / ways[-1].total()


def figure(values: Sequence[float]) -> Figure:
    """Return the figure of the values of one repeat each."""
    return Figure(tuple(values))


def first_s(repeat: Repeat) -> float:
    """Return the time to the first token of the middle request."""
    return median(repeat.first_s)


def token_s(repeat: Repeat) -> float:
    """Return the time between two tokens of the middle request."""
    return median(repeat.token_s)


def tokens_per_s(repeat: Repeat) -> float:
    """Return the tokens per second of all answers together."""
    return repeat.tokens / repeat.wall_s


def answer_s(repeat: Repeat) -> float:
    """Return how long the middle request took, from its being sent to its last token."""
    output = repeat.tokens // len(repeat.first_s)
    each = zip(repeat.first_s, repeat.token_s, strict=True)
    return median(first + (output - 1) * token for first, token in each)


def of_record(record: Record, what: Callable[[Repeat], float]) -> Figure:
    """Return a figure of a record that has not failed."""
    return figure([what(repeat) for repeat in record.repeats])


@dataclass(frozen=True)
class Split:
    """Where the seconds of a round went: arithmetic, exchange itself, waiting for slower ranks, rank 0's other work."""

    compute: float
    exchange: float
    wait: float
    other: float

    @property
    def shares(self) -> list[float]:
        """Return the four as parts of their sum; zeros where nothing was counted."""
        parts = [self.compute, self.exchange, self.wait, self.other]
        return [part / sum(parts) for part in parts] if sum(parts) else parts


def split(record: Record) -> Split:
    """Return the mean of all rounds and replicas.

    The exchange of the rank of a replica that waits least is taken for the exchange itself, and what the others spend
    more for waiting. Rank 0 serves the replicas in turn, so each has its part of rank 0's other work.
    """
    found = []
    for repeat in record.repeats:
        for group in record.groups:
            spent = [repeat.exchange_s[rank] for rank in group]
            compute = fmean(repeat.compute_s[rank] for rank in group)
            other = repeat.other_s / len(record.groups)
            found.append(Split(compute, min(spent), fmean(spent) - min(spent), other))
    names = ("compute", "exchange", "wait", "other")
    return Split(*(fmean(getattr(each, name) for each in found) if found else 0.0 for name in names))


@dataclass(frozen=True)
class Speedup:
    """How many times as many tokens per second a point has as that with the fewest shards and all else equal.

    efficiency: of it, what each shard has, beside the fewest.
    """

    point: Point
    fewest: int
    speedup: float
    efficiency: float


def speedups(records: Sequence[Record]) -> list[Speedup]:
    """Return those of all points that have a point with fewer shards beside them, and of these."""
    alike: dict[Point, list[Record]] = {}
    for record in records:
        if not record.error:
            alike.setdefault(at_shards(record.point, 1), []).append(record)
    found = []
    for group in alike.values():
        group = sorted(group, key=lambda record: record.point.server.shards)
        fewest, base = group[0].point.server.shards, of_record(group[0], tokens_per_s).value
        for record in group if len(group) > 1 else []:
            speedup = of_record(record, tokens_per_s).value / base
            found.append(Speedup(record.point, fewest, speedup, speedup * fewest / record.point.server.shards))
    return found


def at_shards(point: Point, shards: int) -> Point:
    """Return the point with another number of shards."""
    return replace(point, server=replace(point.server, shards=shards))
