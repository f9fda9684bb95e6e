"""Say which number of shards is best for latency, for throughput and for memory, and why, from a sweep's records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from sweep_figures import Figure, answer_s, figure, split, tokens_per_s
from sweep_points import Load, Server
from sweep_records import Record

LATENCY, THROUGHPUT, MEMORY = "latency", "throughput", "memory"


@dataclass(frozen=True)
class Candidate:
    """A server, what it reaches, and the record that shows where its time goes."""

    server: Server
    figure: Figure
    record: Record


@dataclass(frozen=True)
class Choice:
    """The best server for a goal: of those that tie with the one that reaches most, the one with the fewest shards.

    ties: the others that tie; candidates: all, of each number of shards the best.
    """

    goal: str
    best: Candidate
    ties: list[Candidate]
    candidates: list[Candidate]

    @property
    def shards(self) -> int:
        """Return the number of shards that is recommended."""
        return self.best.server.shards

    @property
    def leader(self) -> Candidate:
        """Return the candidate that reaches most, be it by less than the noise."""
        return leader_of(self.goal, self.candidates)


def leader_of(goal: str, candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate that reaches most; more is better of throughput only."""
    sign = -1 if goal == THROUGHPUT else 1
    return min(candidates, key=lambda c: sign * c.figure.value)


def choose(goal: str, candidates: Sequence[Candidate]) -> Choice:
    """Return the choice among some candidates."""
    sign = -1 if goal == THROUGHPUT else 1

    def best_of(among: Sequence[Candidate]) -> Candidate:
        leader = leader_of(goal, among)
        near = [c for c in among if c.figure.ties(leader.figure)]
        return min(near, key=lambda c: (c.server.shards, c.server.ranks, sign * c.figure.value))

    counts = sorted({c.server.shards for c in candidates})
    each = [best_of([c for c in candidates if c.server.shards == count]) for count in counts]
    best = best_of(each)
    leader = leader_of(goal, each)
    return Choice(goal, best, [c for c in each if c is not best and c.figure.ties(leader.figure)], each)


def choices(records: Sequence[Record]) -> dict[str, dict[str, Choice]]:
    """Return the choices by quantisation, which decides what answers are worth too, and by goal."""
    found: dict[str, dict[str, Choice]] = {}
    for quantize in dict.fromkeys(record.point.server.quantize for record in records):
        servers = whole([record for record in records if record.point.server.quantize == quantize])
        if servers:
            found[quantize] = {goal: choose(goal, candidates(goal, servers)) for goal in (LATENCY, THROUGHPUT, MEMORY)}
    return found


def whole(records: Sequence[Record]) -> dict[Server, dict[Load, Record]]:
    """Return what was measured of each server, without those that lack a load that another one has."""
    servers: dict[Server, dict[Load, Record]] = {}
    for record in records:
        if not record.error and record.repeats:
            servers.setdefault(record.point.server, {})[record.point.load] = record
    most = max((len(loads) for loads in servers.values()), default=0)
    return {server: loads for server, loads in servers.items() if len(loads) == most}


def candidates(goal: str, servers: dict[Server, dict[Load, Record]]) -> list[Candidate]:
    """Return what each server reaches.

    latency: the time of an answer at the fewest requests at once; throughput: tokens per second at the number of
    requests at once that gives most; both as the geometric mean over all lengths. memory: bytes of weights and cache
    of the rank that holds most.
    """
    found = []
    for server, loads in servers.items():
        record = next(iter(loads.values()))
        if goal == MEMORY:
            size = float(max(record.shard_bytes, default=0))
            found.append(Candidate(server, Figure((size,) * len(record.repeats)), record))
            continue
        what = answer_s if goal == LATENCY else tokens_per_s
        wanted = _at_fewest(loads) if goal == LATENCY else _at_most(loads)
        rounds = [[what(repeat) for repeat in record.repeats] for record in wanted]
        values = [geometric_mean(values) for values in zip(*rounds, strict=False)]
        found.append(Candidate(server, figure(values), wanted[0]))
    return found


def _at_fewest(loads: dict[Load, Record]) -> list[Record]:
    """Return the records with the fewest requests at once."""
    fewest = min(load.concurrency for load in loads)
    return [record for load, record in loads.items() if load.concurrency == fewest]


def _at_most(loads: dict[Load, Record]) -> list[Record]:
    """Return for each pair of lengths the record with the most tokens per second."""
    best: dict[tuple[int, int], tuple[float, Record]] = {}
    for load, record in loads.items():
        rate = figure([tokens_per_s(repeat) for repeat in record.repeats]).value
        lengths = load.prompt, load.output
        if lengths not in best or rate > best[lengths][0]:
            best[lengths] = rate, record
    return [record for _, record in best.values()]


def advice(records: Sequence[Record]) -> str:
    """Return the recommendation, a sentence for each quantisation."""
    told = []
    for quantize, found in choices(records).items():
        counts = ", ".join(f"{_shards(choice.shards)} for {goal}" for goal, choice in found.items())
        parts = ". ".join(_part(choice) for choice in found.values())
        told.append(f"Best with quantize={quantize}: {counts}. {parts}.")
    return "\n".join(told) or "Nothing can be recommended: no point was measured."


def _part(choice: Choice) -> str:
    """Return what is said of one goal."""
    best = choice.best
    others = [_beside(choice, other) for other in choice.candidates if other is not best]
    why = _shown(choice.goal, best)
    why += f"; {'; '.join(others)}" if others else "; no other number was measured"
    return f"{_shards(best.server.shards)} {'is' if best.server.shards == 1 else 'are'} best for {choice.goal}: {why}"


def _beside(choice: Choice, other: Candidate) -> str:
    """Return how another number of shards compares, in words."""
    mine, its = choice.best.figure, other.figure
    shown = f"{_shards(other.server.shards)}: {_shown(choice.goal, other)}"
    if other in choice.ties:
        return f"a tie, so the fewer, with {shown}"
    more = mine.value / its.value if choice.goal == THROUGHPUT else its.value / mine.value
    return f"{more:.2f} times as good as {shown}"


def _shown(goal: str, candidate: Candidate) -> str:
    """Return what a server reaches, and for times where they go."""
    told = _reach(goal, candidate.figure)
    told += f" with {settings}" if (settings := _settings(candidate.server)) else ""
    return told if goal == MEMORY else f"{told}, {_time(candidate.record)}"


def _reach(goal: str, found: Figure) -> str:
    """Return a figure with its unit and its spread."""
    if goal == MEMORY:
        return f"{found.value / 2**20:.1f} MiB per rank"
    if goal == THROUGHPUT:
        return f"{found.value:.1f} tokens/s ({found.least:.1f} to {found.most:.1f})"
    return f"{found.value * 1e3:.1f} ms an answer ({found.least * 1e3:.1f} to {found.most * 1e3:.1f})"


def _time(record: Record) -> str:
    """Return where the time of a server goes."""
    compute, exchange, wait, _ = (round(100 * share) for share in split(record).shares)
    return f"{compute} % computing, {exchange} % exchanging, {wait} % waiting for slower ranks"


def _settings(server: Server) -> str:
    """Return what else of a server is not as by default."""
    usual = Server()
    names = ("replicas", "threads", "level")
    return " ".join(
        f"{name}={getattr(server, name)}" for name in names if getattr(server, name) != getattr(usual, name)
    )


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count > 1)}"
