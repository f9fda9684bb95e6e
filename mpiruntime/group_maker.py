"""Make what the ranks of a group meet through: the same links as those of the world, and a place for the watchdog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.devices import CPU
from ollampi.mpiruntime.exchange import Exchange, choose_for_group
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.gpu_exchange import can_record, choose_gpu_exchange
from ollampi.mpiruntime.groups import Group, facts_of, part_of
from ollampi.mpiruntime.watchdog import Place, Watchdog
from ollampi.mpiruntime.watched import Watched
from ollampi.mpiruntime.world import RankFacts


@dataclass(frozen=True)
class GroupMaker:
    """What a rank makes groups of.

    comm, facts: of the world; crowded: whether threads outnumber the cores; world: what its ranks exchange through,
    whose kind of link and whose plans groups take over; dog: None where nobody watches; around: returns a communicator
    that says in a place what it waits for.
    """

    comm: Communicator
    facts: list[RankFacts]
    settings: ExchangeSettings
    crowded: bool
    world: Exchange
    dog: Watchdog | None
    around: Callable[[Communicator, Place], Communicator] = Watched

    def __call__(self, ranks: tuple[int, ...]) -> Group:
        """Return the group of some ranks, of which this is one; collective over them."""
        part, facts = part_of(self.comm, ranks), facts_of(self.facts, ranks)
        exchange = self._exchange(part, facts)
        where = Place() if self.dog is None else self.dog.at(ranks)
        comm, sums = self.around(exchange.comm, where), self.around(exchange.sums, where)
        return Group(ranks, comm, sums, facts, where, can_record(exchange))

    def _exchange(self, part: Communicator, facts: list[RankFacts]) -> Exchange:
        """Return how the ranks of a group exchange tensors; collective over them."""
        if part.size == 1:
            return Exchange(part, part, "")
        settings = replace(self.settings, link="auto") if self.settings.link == "nccl" else self.settings

        def by_hosts() -> Exchange:
            """Return the exchange through the memory of the hosts."""
            return choose_for_group(part, facts, settings, self.crowded, self.world)

        if any(fact.device == CPU for fact in facts):
            return by_hosts()
        return choose_gpu_exchange(part, facts, settings, by_hosts)
