"""Estimate what a step of a replica takes on some ranks: the cost model with what was measured at the start.

A strategy knows no more than `TokenCost`: whoever knows the time better hands it another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ollampi.mpiruntime import cost_model
from ollampi.mpiruntime.cost_model import Constants, Counts, Site, Work, doublings, seconds_of
from ollampi.mpiruntime.measuring import micros
from ollampi.mpiruntime.memory import human


class TokenCost(Protocol):
    """What a strategy weighs."""

    def seconds(self, hosts: Sequence[str], rows: int = 1, beside: Sequence[str] = ()) -> float:
        """Return about how long a step takes that adds a token to each of `rows` answers.

        hosts: of each rank of the replica; beside: of each rank of other replicas, which compute at the same time.
        """

    def told(self, hosts: Sequence[str], rows: int = 1, beside: Sequence[str] = ()) -> str:
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
        return here * doublings(ranks) / doublings(self.ranks)


@dataclass(frozen=True)
class Rates:
    """What is known of the machine: from the start of this job, where it was measured then, else from the constants.

    alone_bytes_per_s: what a rank reads of weights while the others of its host rest; host_bytes_per_s: what all ranks
    of the slowest host read together; near, far: sums over ranks of one host, and over hosts; None: not measured.
    fitted: whether the constants were fitted to steps on such a machine, else they are of the right order on any.
    """

    alone_bytes_per_s: float | None = None
    host_bytes_per_s: float | None = None
    near: SumTimes | None = None
    far: SumTimes | None = None
    constants: Constants = cost_model.ASSUMED
    fitted: bool = False


ASSUMED = Rates()


@dataclass(frozen=True)
class Estimate:
    """work: what a step is on so many shards that adds a token to so many answers.

    threads: of each rank; cores: of each host by its name, those of hosts that are not named suffice.
    """

    work: Callable[[int, int], Work]
    rates: Rates = ASSUMED
    threads: int = 1
    cores: Mapping[str, int] = field(default_factory=dict)

    def seconds(self, hosts: Sequence[str], rows: int = 1, beside: Sequence[str] = ()) -> float:
        """Return the estimate for ranks on these hosts."""
        work, site, constants = self.work(len(hosts), rows), self._site(hosts, beside), self._constants()
        own = cost_model.own_counts(work, site, constants)
        apart = cost_model.added([own, cost_model.gather_counts(work, site)])
        return seconds_of(apart, constants) + work.sums * self._sum_s(work, site)

    def told(self, hosts: Sequence[str], rows: int = 1, beside: Sequence[str] = ()) -> str:
        """Return what it comes from."""
        work, site, constants = self.work(len(hosts), rows), self._site(hosts, beside), self._constants()
        read_s = max(constants.core_byte_s / site.share, constants.host_byte_s * site.busy)
        known = self.rates.alone_bytes_per_s is not None and not self.rates.fitted
        rate = f"at {1e-9 / read_s:.1f} GB/s" if read_s else "in no time"  # a fit may find so
        parts = [f"weights read {rate} by each rank ({_how(known, self.rates.fitted)})"]
        own = cost_model.own_counts(work, site, constants)
        beside_s = seconds_of(
            {name: own[name] for name in ("step_s", "row_s", "layer_s", "value_s", "follow_s")}, constants
        )
        parts += [f"{beside_s * 1e3:.2f} ms beside products and sums ({_how(False, self.rates.fitted)})"]
        if len(hosts) > 1:
            known = all(found is not None for _, _, found in self._stages(work, site))
            parts += [
                f"sums of {human(work.sum_bytes)} in {micros(self._sum_s(work, site))} us"
                f" ({_how(known, self.rates.fitted)})"
            ]
        return f"from {', '.join(parts[:-1])} and {parts[-1]}"

    def _site(self, hosts: Sequence[str], beside: Sequence[str]) -> Site:
        """Return where ranks lie; what is uneven counts as on the host that has most of it."""
        here, all_ = Counter(hosts), Counter([*hosts, *beside])
        crowded = max(here, key=lambda host: all_[host] / self.cores.get(host, len(hosts) + len(beside)))
        return Site(
            local=max(here.values()),
            hosts=len(here),
            busy=all_[crowded],
            threads=self.threads,
            cores=self.cores.get(crowded),
        )

    def _constants(self) -> Constants:
        """Return the constants, those of reading as measured unless they were fitted to steps, which tell more."""
        rates, constants = self.rates, self.rates.constants
        if rates.fitted:
            return constants
        if rates.alone_bytes_per_s is not None:
            constants = replace(constants, core_byte_s=self.threads / rates.alone_bytes_per_s)
        if rates.host_bytes_per_s is not None:
            constants = replace(constants, host_byte_s=1 / rates.host_bytes_per_s)
        return constants

    def _sum_s(self, work: Work, site: Site) -> float:
        """Return what one sum takes."""
        return sum(
            seconds_of(counts, self.rates.constants) if found is None else found.of(work.sum_bytes, ranks)
            for ranks, counts, found in self._stages(work, site)
        )

    def _stages(self, work: Work, site: Site) -> list[tuple[int, Counts, SumTimes | None]]:
        """Return over how many ranks each stage of a sum is made, what it takes, and what was measured."""
        near = (site.local, cost_model.near_counts(work, site), self.rates.near)
        far = (site.hosts, cost_model.far_counts(work, site, self.rates.constants), self.rates.far)
        return [stage for stage in (near, far) if stage[0] > 1]


def _how(measured: bool, fitted: bool) -> str:
    return "measured" if measured else "fitted on this machine" if fitted else "assumed"
