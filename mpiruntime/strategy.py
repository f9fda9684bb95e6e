"""Choose on how many ranks, and on which, the replicas of a model lie. Rank 0 only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ollampi.mpiruntime.cluster import STRATEGIES, Wish
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import MemoryShortError, ModelError, RequestError
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.token_cost import TokenCost
from ollampi.mpiruntime.world import RankFacts

Groups = tuple[tuple[int, ...], ...]  # the ranks of each replica
_ALIKE, _HALFWAY = 1.25, 2.0  # of the least time for a token: what auto and balanced take for fewer shards


@dataclass(frozen=True)
class Layout:
    """Where replicas lie, with which settings, and in a sentence why."""

    groups: Groups
    settings: EngineSettings
    strategy: str
    why: str

    def in_turn(self) -> list[tuple[int, ...]]:
        """Return the ranks of each replica in the order in which they are loaded: first those with rank 0."""
        return sorted(self.groups, key=lambda ranks: 0 not in ranks)


Fits = Callable[[Groups, EngineSettings], object]  # raises ModelError where replicas do not fit on ranks together


@dataclass(frozen=True)
class Chooser:
    """What a choice depends on.

    usable: the ranks that may hold weights; held: the bytes that each rank holds once what must go has gone; cost: what
    a step takes; fits: asks the ranks; before: the ranks that hold the model now, and which it leaves in any case.
    """

    facts: Sequence[RankFacts]
    usable: Sequence[int]
    held: Mapping[int, int]
    config: ModelConfig
    cost: TokenCost
    settings: EngineSettings
    fits: Fits
    before: frozenset[int] = frozenset()

    def choose(self, wish: Wish) -> Layout:
        """Return the layout for a wish; raise RequestError or ModelError where it cannot be had."""
        self._check(wish)
        settings = self.settings_of(wish.strategy)
        if wish.ranks is not None:
            groups = self.tried(wish)
            return Layout(groups, settings, wish.strategy, f"these ranks were asked for: {_listed(groups)}")
        if wish.shards is not None and (wish.replicas is not None or not _many(wish)):
            groups = self.tried(wish)
            why = "one shard was asked for" if wish.shards == 1 else f"{wish.shards} shards were asked for"
            return Layout(groups, settings, wish.strategy, why)
        if wish.strategy == "memory-optimized":
            replicas = _num_replicas(wish)
            return self._smallest(self.most_shards(replicas), settings, replicas)
        return self._by_time(wish, settings)

    def tried(self, wish: Wish) -> Groups:
        """Return the ranks that a wish names or counts, and where it does neither the most that replicas can have."""
        if wish.ranks is not None:
            return tuple(tuple(sorted(group)) for group in wish.ranks)
        replicas = _num_replicas(wish)
        return self.spread(wish.shards or self.most_shards(replicas), replicas)

    def most_shards(self, replicas: int) -> int:
        """Return the most shards that each of so many replicas can have on ranks of its own."""
        return min(len(self.usable) // replicas, self.config.num_heads)

    def _by_time(self, wish: Wish, settings: EngineSettings) -> Layout:
        """Return the layout of a strategy that decides by the time for a token; raise ModelError where none fits.

        The ranks are asked about the fastest first, then about those of few ranks that are nearly as fast.
        """
        times = self._times(wish)
        errors = dict[tuple[int, int], ModelError]()

        def first(tried: Sequence[Groups]) -> Groups | None:
            """Return the first of some groups that fit, None where none do."""
            return next((groups for groups in tried if self._fitting(groups, settings, errors)), None)

        best = first(sorted(times, key=lambda groups: (times[groups], _num_ranks(groups))))
        if best is None:
            raise _of_memory([errors[size] for size in sorted(errors)])  # of the most shards
        slack = {"speed-optimized": 1.0, "balanced": _HALFWAY}.get(wish.strategy, _ALIKE)
        near = [groups for groups in times if times[groups] <= slack * times[best]]
        chosen = first(sorted(near, key=lambda groups: (_num_ranks(groups), len(groups[0]), times[groups]))) or best
        return Layout(chosen, settings, wish.strategy, self._why(wish, chosen))

    def _times(self, wish: Wish) -> dict[Groups, float]:
        """Return the groups that may be, and about what a token takes there, over all answers that run together."""
        streams = wish.streams or 1
        if wish.replicas is not None or not _many(wish):
            numbers = range(_num_replicas(wish), _num_replicas(wish) + 1)
        else:
            numbers = range(1, min(streams, len(self.usable)) + 1)
        found = {}
        for replicas in numbers:
            most = self.most_shards(replicas)
            for shards in range(1, most + 1) if wish.shards is None else [wish.shards] * (wish.shards <= most):
                groups = self.spread(shards, replicas)
                found[groups] = self._slowest(groups, streams)[0] / max(streams, replicas)
        return found

    def _slowest(self, groups: Groups, streams: int) -> tuple[float, str]:
        """Return what a step of the slowest replica takes, where all have their part of so many answers, and why."""
        rows, hosts = -(-streams // len(groups)), [[self.facts[rank].host for rank in ranks] for ranks in groups]
        found = {}
        for number, own in enumerate(hosts):
            beside = [host for i, other in enumerate(hosts) if i != number for host in other]
            found[self.cost.seconds(own, rows, beside)] = self.cost.told(own, rows, beside)
        return max(found), found[max(found)]

    def _fitting(self, groups: Groups, settings: EngineSettings, errors: dict[tuple[int, int], ModelError]) -> bool:
        """Return whether replicas fit on groups, and note the error by shards and replicas where they do not."""
        size = len(groups[0]), len(groups)
        if size in errors:
            return False
        try:
            self.fits(groups, settings)
        except ModelError as e:
            errors[size] = e
            return False
        return True

    def _why(self, wish: Wish, groups: Groups) -> str:
        """Return why a layout was chosen."""
        streams, shards, replicas = wish.streams or 1, len(groups[0]), len(groups)
        seconds, told = self._slowest(groups, streams)
        what, one = f"{shards} shard{_s(shards)}", shards == 1
        if _many(wish):
            what, one = f"{replicas} replica{_s(replicas)} of {what}", replicas == 1
            took = f"an estimated {streams / seconds:.4g} tokens/s, {seconds * 1e3:.2f} ms for each step, {told}"
            few, alike = (
                f"{'takes' if one else 'take'} the fewest ranks",
                "of all that fit and are about as fast as any",
            )
        else:
            took = f"an estimated {seconds * 1e3:.2f} ms for each token, {told}"
            few = f"{'is' if one else 'are'} the fewest"
            alike = "that fits and is about as fast as any" if one else "that fit and are about as fast as any"
        of = f"{streams} streams" if _many(wish) else "one stream"
        reasons = {
            "speed-optimized": f"{what} {'is' if one else 'are'} the fastest for {of}, {took}",
            "balanced": f"{what} {few} within twice the least time, {took}",
            "auto": f"{what} {few} {alike}, {took}",
        }
        return reasons[wish.strategy]

    def _smallest(self, most: int, settings: EngineSettings, replicas: int) -> Layout:
        """Return the layout that takes the least memory of each rank; raise ModelError where none fits.

        Not every number of shards can share the groups of quantised weights: then fewer do, or the weights stay.
        """
        errors = list[ModelError]()
        for quantize in dict.fromkeys([settings.quantize, self.settings.quantize]):
            for shards in range(most, 0, -1):
                own, groups = replace(settings, quantize=quantize), self.spread(shards, replicas)
                try:
                    self.fits(groups, own)
                except ModelError as e:
                    errors.append(e)
                    continue
                kept = "as the files have it" if quantize == "auto" else f"in {quantize}"
                why = f"{shards} of {most} ranks share it, {kept} and with room for one text, to take little memory"
                return Layout(groups, own, "memory-optimized", why)
        raise _of_memory(errors[::-1])

    def settings_of(self, strategy: str) -> EngineSettings:
        """Return the settings of a strategy: to take little memory, q4, room for one text, layers read from disk."""
        if strategy != "memory-optimized":
            return self.settings
        quantize = self.settings.quantize if self.settings.deterministic else "q4"
        stream = "auto" if self.settings.stream == "never" else self.settings.stream
        return replace(self.settings, quantize=quantize, cache_tokens=self.settings.context_length, stream=stream)

    def spread(self, shards: int, replicas: int) -> Groups:
        """Return disjoint groups of ranks: those that hold least first, ranks of one host together where they can.

        Of ranks that hold as much those come first on which the model lies already.
        """
        left = sorted(self.usable, key=lambda rank: (self.held.get(rank, 0), rank not in self.before, rank))
        groups = []
        for _ in range(replicas):
            hosts = {
                self.facts[rank].host: [r for r in left if self.facts[r].host == self.facts[rank].host] for rank in left
            }
            near = next((ranks for ranks in hosts.values() if len(ranks) >= shards), left)
            groups.append(tuple(sorted(near[:shards])))
            left = [rank for rank in left if rank not in groups[-1]]
        return tuple(groups)

    def _check(self, wish: Wish) -> None:
        """Raise RequestError for what no placement can be."""
        if wish.strategy not in STRATEGIES:
            raise RequestError(f"strategy={wish.strategy} is unknown; use one of {', '.join(STRATEGIES)}")
        sizes = [wish.shards] if wish.ranks is None else [len(group) for group in wish.ranks]
        for shards in [size for size in sizes if size is not None]:
            self._check_shards(shards)
        if wish.replicas is not None and wish.replicas < 1:
            raise RequestError(f"replicas={wish.replicas} are none; use at least 1")
        if wish.streams is not None and wish.streams < 1:
            raise RequestError(f"streams={wish.streams} are none; use at least 1")
        if wish.ranks is not None:
            self._check_ranks(wish, wish.ranks)
        elif (wanted := (wish.shards or 1) * (wish.replicas or 1)) > len(self.usable):
            raise RequestError(
                f"{wish.replicas or 1} replicas of {wish.shards or 1} shards want {wanted} ranks and {len(self.usable)}"
                " can hold weights; use fewer shards or replicas, or name ranks, which replicas may share"
            )

    def _check_shards(self, shards: int) -> None:
        """Raise RequestError for a number of shards that the model does not have."""
        if not 1 <= shards <= self.config.num_heads:
            raise RequestError(
                f"cannot cut {self.config.num_heads} attention heads into {shards} shards; use 1 to"
                f" {min(self.config.num_heads, len(self.usable))}"
            )

    def _check_ranks(self, wish: Wish, ranks: Sequence[Sequence[int]]) -> None:
        """Raise RequestError for ranks that are not there, hold no weights, come twice, or are another number."""
        there = f"ranks that can hold weights: {', '.join(map(str, self.usable))}"
        for group in ranks:
            strange = [rank for rank in group if rank not in self.usable]
            if strange and 0 in strange and len(self.usable) < len(self.facts):
                raise RequestError(f"rank 0 is the coordinator, which holds no weights; {there}")
            if strange:
                gone = 0 <= strange[0] < len(self.facts)
                what = f"rank {strange[0]} has left" if gone else f"there is no rank {strange[0]}"
                raise RequestError(f"{what}; {there}")
            if len(set(group)) < len(group):
                raise RequestError(f"the ranks {list(group)} of a replica name one twice; name each once")
            if wish.shards not in (None, len(group)):
                raise RequestError(
                    f"shards={wish.shards} and the {len(group)} ranks {list(group)} differ; leave one out"
                )
        if not ranks or wish.replicas not in (None, len(ranks)):
            raise RequestError(f"replicas={wish.replicas} and {len(ranks)} lists of ranks differ; leave one out")


def _num_replicas(wish: Wish) -> int:
    """Return how many replicas are wished for."""
    return wish.replicas or (len(wish.ranks) if wish.ranks else 1)


def _many(wish: Wish) -> bool:
    """Return whether more than one answer is expected to run at a time."""
    return (wish.streams or 1) > 1


def _s(count: int) -> str:
    """Return the ending of a noun of which there are so many."""
    return "" if count == 1 else "s"


def _num_ranks(groups: Groups) -> int:
    """Return how many ranks groups have."""
    return sum(map(len, groups))


def _of_memory(errors: Sequence[ModelError]) -> ModelError:
    """Return the last error that is about memory, which may be had, else the last one."""
    return next((error for error in reversed(errors) if isinstance(error, MemoryShortError)), errors[-1])


def _listed(groups: Groups) -> str:
    """Return groups in words, such as "0 1 and 2 3"."""
    return " and ".join(" ".join(map(str, group)) for group in groups)
