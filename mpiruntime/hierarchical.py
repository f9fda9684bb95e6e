"""Add up tensors in two stages: in the memory of each host, then between one rank of each host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.communicator import Around, Communicator, Single
from ollampi.mpiruntime.errors import WorldError
from ollampi.mpiruntime.shared_memory import SHM, share_memory
from ollampi.mpiruntime.world import RankFacts


class Hierarchical(Around):
    """The communicator `inner` whose sums are made in each host first; everything else goes through `inner`.

    host: of the ranks of this rank's host; leaders: of the first rank of each host, None on the others.
    """

    def __init__(self, inner: Communicator, host: Communicator, leaders: Communicator | None) -> None:
        super().__init__(inner)
        self.gather = inner.gather
        self.share_rows = inner.share_rows  # type: ignore[method-assign]
        self._host = host
        self._leaders = leaders
        self.leave = self._leave

    def _leave(self) -> None:
        """Free what the ranks of a host and their first ones have for themselves, and what lies beneath; collective."""
        self._host.leave()
        if self._leaders is not None:
            self._leaders.leave()
        self._around.leave()

    @property
    def wire_bytes(self) -> int:
        """Return the bytes that this rank sent to other hosts and received, as far as these are counted."""
        return self._around.wire_bytes + (0 if self._leaders is None else self._leaders.wire_bytes)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x over all ranks, in fp64 where x is, else in fp32; collective.

        The same bits everywhere: each host gets those that its leader has.
        """
        total = self._host.all_reduce(x)
        if self._leaders is not None:
            total = self._leaders.all_reduce(total)
        self._host.share(total)
        return total

    def all_reduce_later(self, x: Tensor) -> Callable[[], Tensor]:
        """Return what waits for the sum of x [...]; collective. Only between hosts it is on its way meanwhile."""
        total = self._host.all_reduce(x)
        leaders = None if self._leaders is None else self._leaders.all_reduce_later(total)

        def waited() -> Tensor:
            """Return the sum, which the leader shares with its host."""
            found = total if leaders is None else leaders()
            self._host.share(found)
            return found

        return waited


def by_host(facts: list[RankFacts]) -> list[list[int]]:
    """Return the ranks of each host in rank order, the host of rank 0 first; each list begins with a leader."""
    hosts: dict[str, list[int]] = {}
    for fact in facts:
        hosts.setdefault(fact.host, []).append(fact.rank)
    return list(hosts.values())


def hierarchical(
    comm: Communicator,
    facts: list[RankFacts],
    crowded: bool,
    between: Callable[[Communicator], Communicator] = lambda leaders: leaders,
    folder: Path = SHM,
) -> Hierarchical:
    """Return the communicator over hosts, one or more, of one or more ranks each; collective.

    between: makes of the leaders' communicator the one that their sums go through; called on leaders alone. Raise
    WorldError on all ranks where a host with several ranks cannot share memory.
    """
    groups = by_host(facts)
    own = next(group for group in groups if comm.rank in group)
    inside = agree(comm, lambda: _inside(comm, own, facts[comm.rank].host, crowded, folder), WorldError)
    leaders = comm.within([group[0] for group in groups]) if comm.rank == own[0] else None
    return Hierarchical(comm, inside, None if leaders is None else between(leaders))


def _inside(comm: Communicator, own: list[int], host: str, crowded: bool, folder: Path) -> Communicator:
    """Return the communicator of the ranks of a host, collective there; one that is alone needs no memory.

    Raise WorldError on all of them where one cannot share memory; its message counts ranks within the host.
    """
    if len(own) == 1:
        return Single()
    try:
        return share_memory(comm.within(own), crowded, folder, own)
    except WorldError as e:
        raise WorldError(f"host {host}: {e}") from e
