"""Choose the ranks that may take the place of another one in a group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ollampi.mpiruntime.world import RankFacts


def stand_ins(
    rank: int, facts: Sequence[RankFacts], usable: Sequence[int], held: Mapping[int, int], taken: Collection[int]
) -> list[int]:
    """Return the ranks that may take the place of another one, the best first.

    First those that hold nothing, of these those on its host; then those that hold least. usable: the ranks that may
    hold weights; held: the bytes that each holds; taken: those that hold the model already.
    """
    able = [other for other in usable if other != rank and other not in taken]
    host = facts[rank].host
    return sorted(able, key=lambda o: (held.get(o, 0) > 0, facts[o].host != host, held.get(o, 0), o))
