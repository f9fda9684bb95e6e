"""Hold a model as it is placed: its replicas, why they lie where they do, and how long it stays. Rank 0 only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ollampi.mpiruntime.balancing import Balancer
from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.request import LoadedModel, ModelRef
from ollampi.mpiruntime.step import Load
from ollampi.mpiruntime.strategy import Layout


@dataclass(eq=False)
class Placed:
    """A model in memory. replicas: one or more; layout: where they lie and why; wish: what was asked for."""

    ref: ModelRef
    replicas: list[HostedModel]
    layout: Layout
    wish: Wish
    balancer: Balancer

    @property
    def idle(self) -> bool:
        """Return whether no replica has work."""
        return all(replica.idle for replica in self.replicas)

    @property
    def keep_s(self) -> float:
        """Return how long the model stays once idle, negative for ever."""
        return self.replicas[0].keep_s

    @property
    def last_used(self) -> float:
        """Return when it was used last, by time.monotonic."""
        return self.replicas[0].stay.last_used

    def choose(self, prompt: Sequence[int]) -> HostedModel:
        """Return the replica that takes a request."""
        if len(self.replicas) == 1:
            return self.replicas[0]
        return self.replicas[self.balancer.choose([replica.scheduler for replica in self.replicas], prompt)]

    def listing(self) -> LoadedModel:
        """Return what /api/ps tells of the model: all replicas as one."""
        each = [replica.listing() for replica in self.replicas]
        sizes = {"size_bytes": sum(e.size_bytes for e in each), "gpu_bytes": sum(e.gpu_bytes for e in each)}
        return LoadedModel(**{**vars(each[0]), **sizes})


def replicas_of(placed: Iterable[Placed]) -> list[HostedModel]:
    """Return the replicas of some models."""
    return [model for each in placed for model in each.replicas]


@dataclass(eq=False)
class Coming:
    """A model that is being loaded, replica after replica.

    rest: the ranks of those that are not there yet; load, ranks: of the one that is under way, if one is; holds_up:
    whether these ranks do nothing else meanwhile.
    """

    ref: ModelRef
    layout: Layout
    wish: Wish
    rest: list[tuple[int, ...]] = field(default_factory=list)
    done: list[HostedModel] = field(default_factory=list)
    load: Load | None = None
    ranks: frozenset[int] = frozenset()
    holds_up: bool = False
