"""Hold a model as it is placed: its replicas, why they lie where they do, and how long it stays. Rank 0 only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ollampi.mpiruntime.balancing import Balancer
from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.request import LoadedModel, ModelRef
from ollampi.mpiruntime.step import Load
from ollampi.mpiruntime.strategy import Layout


@dataclass(eq=False)
class Placed:
    """A model in memory. replicas: one or more; layout: where they lie and why; wish: what was asked for.

    retiring: replicas that finish what they have and take nothing new, since others are in their place.
    """

    ref: ModelRef
    replicas: list[HostedModel]
    layout: Layout
    wish: Wish
    balancer: Balancer
    retiring: list[HostedModel] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        """Return whether no replica has work."""
        return all(replica.idle for replica in (*self.replicas, *self.retiring))

    @property
    def keep_s(self) -> float:
        """Return how long the model stays once idle, negative for ever."""
        return self.replicas[0].keep_s

    @property
    def last_used(self) -> float:
        """Return when it was used last, by time.monotonic."""
        return self.replicas[0].stay.last_used

    def expired(self, now: float) -> bool:
        """Return whether all replicas are idle and the model's time is over."""
        return self.idle and all(replica.expired(now) for replica in self.replicas)

    def choose(self, prompt: Sequence[int]) -> HostedModel | None:
        """Return the replica that takes a request, None where all are closed."""
        able = [replica for replica in self.replicas if not replica.closed]
        if len(able) < 2:
            return able[0] if able else None
        return able[self.balancer.choose([replica.scheduler for replica in able], prompt)]

    def swap(self, old: HostedModel, new: HostedModel | None) -> None:
        """Put a replica in the place of another one, or none, which then finishes what it has."""
        at = self.replicas.index(old)
        self.replicas = [*self.replicas[:at], *([] if new is None else [new]), *self.replicas[at + 1 :]]
        self.retiring = self.retiring if old.gone else [*self.retiring, old]
        groups = tuple(tuple(sorted(replica.ranks)) for replica in self.replicas)
        lie = "none" if new is None else f"ranks {' '.join(map(str, new.ranks))}"
        why = f"{self.layout.why}; then {lie} in place of ranks {' '.join(map(str, old.ranks))}"
        self.layout = replace(self.layout, groups=groups, why=why)
        if self.wish.ranks is not None:
            self.wish = replace(self.wish, ranks=[list(ranks) for ranks in groups])

    def listing(self) -> LoadedModel:
        """Return what /api/ps tells of the model: all replicas as one."""
        each = [replica.listing() for replica in self.replicas]
        sizes = {"size_bytes": sum(e.size_bytes for e in each), "gpu_bytes": sum(e.gpu_bytes for e in each)}
        return LoadedModel(**{**vars(each[0]), **sizes})


def replicas_of(placed: Iterable[Placed]) -> list[HostedModel]:
    """Return the replicas of some models that are in memory."""
    return [model for each in placed for model in (*each.replicas, *each.retiring) if not model.gone]


@dataclass(frozen=True, eq=False)
class Move:
    """A replica of a model that another one shall replace."""

    placed: Placed
    old: HostedModel


@dataclass(eq=False)
class Coming:
    """A model that is being loaded, replica after replica.

    first: how the first replica is loaded; rest: the ranks of those that are not there yet; load, ranks: of the one
    that is under way, if one is; holds_up: whether these ranks do nothing else meanwhile; drafted: the replica for
    which that one will draft. moves: the replica in whose place it comes, None for a model that is new; error: why it
    did not come.
    """

    ref: ModelRef
    layout: Layout
    wish: Wish
    first: Load
    rest: list[tuple[int, ...]] = field(default_factory=list)
    done: list[HostedModel] = field(default_factory=list)
    load: Load | None = None
    ranks: frozenset[int] = frozenset()
    holds_up: bool = False
    drafted: HostedModel | None = None
    moves: Move | None = None
    error: ModelError | None = None
