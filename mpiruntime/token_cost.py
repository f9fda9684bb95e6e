"""Estimate what a token of one stream takes on some ranks, from what was measured at the start as far as that is known.

A strategy knows no more than `TokenCost`: whoever knows the time better hands it another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ollampi.mpiruntime.measuring import micros
from ollampi.mpiruntime.memory import human

_RANK_BYTES_PER_S = 1e10  # what one rank reads of its weights in a second: of the right order on any machine
_NEAR_S, _FAR_S = 2e-5, 2e-4  # a sum over two ranks of one host, and of several


class TokenCost(Protocol):
    """What a strategy weighs."""

    def seconds(self, hosts: Sequence[str]) -> float:
        """Return about how long a token takes on some ranks; hosts: of each of these."""

    def told(self, hosts: Sequence[str]) -> str:
        """Return in words what that comes from, to end a sentence with."""


@dataclass(frozen=True)
class SumTimes:
    """What a sum over so many ranks was measured to take: seconds by bytes, one size or more."""

    ranks: int
    seconds: Mapping[int, float]

    def of(self, size_bytes: int, ranks: int) -> float:
        """Return about what a sum of a size over some ranks takes: a line between sizes, as much for each doubling."""
        below = max((n for n in self.seconds if n <= size_bytes), default=min(self.seconds))
        above = min((n for n in self.seconds if n >= size_bytes), default=below)
        part = (size_bytes - below) / (above - below) if above > below else 0.0
        here = self.seconds[below] + part * (self.seconds[above] - self.seconds[below])
        if above == below < size_bytes:
            here *= size_bytes / below  # beyond all that was measured
        return here * _doublings(ranks) / _doublings(self.ranks)


@dataclass(frozen=True)
class Rates:
    """What was measured at the start; None: nothing was.

    alone_bytes_per_s: what a rank reads of weights while the others of its host rest; host_bytes_per_s: what all ranks
    of the slowest host read together; near, far: sums over ranks of one host, and over hosts.
    """

    alone_bytes_per_s: float | None = None
    host_bytes_per_s: float | None = None
    near: SumTimes | None = None
    far: SumTimes | None = None

    def reading(self, ranks: int) -> float:
        """Return the bytes that each of so many ranks of a host reads in a second, while they share its memory."""
        alone = self.alone_bytes_per_s or _RANK_BYTES_PER_S
        return alone if self.host_bytes_per_s is None else min(alone, self.host_bytes_per_s / ranks)


ASSUMED = Rates()


@dataclass(frozen=True)
class Estimate:
    """Weights are read once for each token, and sums made within each host first, then between hosts.

    size_bytes: of all weights; sums, sum_bytes: how many sums a token takes, and of what size.
    """

    size_bytes: int
    sums: int
    sum_bytes: int
    rates: Rates = ASSUMED

    def seconds(self, hosts: Sequence[str]) -> float:
        """Return the estimate for ranks on these hosts."""
        return self.size_bytes / len(hosts) / self.rates.reading(_local(hosts)) + self.sums * self._sum_s(hosts)

    def told(self, hosts: Sequence[str]) -> str:
        """Return what it comes from."""
        known = self.rates.alone_bytes_per_s is not None
        text = f"from weights read at {self.rates.reading(_local(hosts)) / 1e9:.1f} GB/s by each rank ({_how(known)})"
        if len(hosts) == 1:
            return text
        known = all(found is not None for _, _, found in self._stages(hosts))
        return f"{text} and sums of {human(self.sum_bytes)} in {micros(self._sum_s(hosts))} us ({_how(known)})"

    def _sum_s(self, hosts: Sequence[str]) -> float:
        """Return what one sum takes."""
        return sum(
            assumed_s * _doublings(ranks) if found is None else found.of(self.sum_bytes, ranks)
            for ranks, assumed_s, found in self._stages(hosts)
        )

    def _stages(self, hosts: Sequence[str]) -> list[tuple[int, float, SumTimes | None]]:
        """Return over how many ranks each stage of a sum is made, its constant, and what was measured."""
        near, far = (_local(hosts), _NEAR_S, self.rates.near), (len(set(hosts)), _FAR_S, self.rates.far)
        return [stage for stage in (near, far) if stage[0] > 1]


def _local(hosts: Sequence[str]) -> int:
    """Return how many of some ranks share a host at most."""
    return max(Counter(hosts).values())


def _doublings(ranks: int) -> int:
    """Return how often a rank is doubled until there are so many, for one rank 0."""
    return (ranks - 1).bit_length()


def _how(known: bool) -> str:
    return "measured" if known else "assumed"
