"""Keep the groups of ranks that hold models: what the ranks of each meet through, made once and freed when unused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.watchdog import Place
from ollampi.mpiruntime.world import RankFacts


@dataclass(eq=False)
class Group:
    """Some ranks of the world that compute models together; the first one leads.

    ranks: of the world, ascending; comm, sums: as for a Runner, numbered within the group; facts: of these ranks,
    numbered likewise; where: what the watchdog sees of this rank; records: whether GPUs may record what is exchanged;
    users: how many models use the group on this rank.
    """

    ranks: tuple[int, ...]
    comm: Communicator
    sums: Communicator
    facts: list[RankFacts]
    where: Place = field(default_factory=Place)
    records: bool = False
    users: int = 0

    @property
    def shard(self) -> Shard:
        """Return this rank's place in the group."""
        return Shard(self.comm.rank, self.comm.size)


Join = Callable[[tuple[int, ...]], Group]


class Groups:
    """The groups of one rank by their ranks. The one of all ranks, `world`, is there from the beginning and stays.

    join: makes another one, collective over its ranks.
    """

    def __init__(self, world: Group, join: Join) -> None:
        self.world = world
        self._join = join
        self._groups = {world.ranks: world}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._groups)

    def enter(self, ranks: Sequence[int]) -> Group:
        """Return the group of some ranks for one more model; no ranks are all. Collective over them."""
        key = tuple(ranks) or self.world.ranks
        if key not in self._groups:
            self._groups[key] = self._join(key)
        self._groups[key].users += 1
        return self._groups[key]

    def of(self, ranks: Sequence[int]) -> Group:
        """Return a group that is there; no ranks are all."""
        return self._groups[tuple(ranks) or self.world.ranks]

    def leave(self, group: Group) -> None:
        """Use a group for one model less, and free it where that was the last one; collective over its ranks."""
        group.users -= 1
        if group.users == 0 and group is not self.world:
            del self._groups[group.ranks]
            group.sums.leave()
            group.comm.leave()


def plain_groups(comm: Communicator, sums: Communicator, facts: list[RankFacts]) -> Groups:
    """Return groups whose ranks exchange through parts of the world's communicator as they are."""

    def join(ranks: tuple[int, ...]) -> Group:
        """Return the group of some ranks."""
        part = part_of(comm, ranks)
        return Group(ranks, part, part, facts_of(facts, ranks), records=len(ranks) == 1)

    return Groups(Group(tuple(range(comm.size)), comm, sums, facts), join)


def part_of(comm: Communicator, ranks: Sequence[int]) -> Communicator:
    """Return the communicator of some ranks, collective over these; a rank that is alone needs none of MPI's."""
    return Single() if len(ranks) == 1 else comm.within(ranks)


def facts_of(facts: list[RankFacts], ranks: Sequence[int]) -> list[RankFacts]:
    """Return the facts of some ranks, numbered within their group."""
    return [replace(facts[rank], rank=number) for number, rank in enumerate(ranks)]
