"""What follows from the records of a sweep: figures with their spread, where the time goes, speed-ups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from sweep_points import Point
from sweep_records import Record, Repeat

_LEAST_NOISE, _FEW_NOISE, _FEW = 0.02, 0.05, 3  # what figures may differ by and be the same; of fewer repeats: more


@dataclass(frozen=True)
class Figure:
    """The median of what the repeats gave, the least and the most."""

    value: float
    least: float
    most: float
    count: int

    @property
    def low(self) -> float:
        """Return what it may as well be, at least: repeats that happen to agree are not taken for certainty."""
        return min(self.least, self.value * (1 - self._noise))

    @property
    def high(self) -> float:
        """Return what it may as well be, at most."""
        return max(self.most, self.value * (1 + self._noise))

    @property
    def _noise(self) -> float:
        return _FEW_NOISE if self.count < _FEW else _LEAST_NOISE

    def ties(self, other: Figure) -> bool:
        """Return whether the difference is below the noise: what either may as well be overlaps."""
        return self.low <= other.high and other.low <= self.high


def figure(values: Sequence[float]) -> Figure:
    """Return the figure of the values of one repeat each."""
    return Figure(median(values), min(values), max(values), len(values))


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
