"""Say what a step takes: constants of a machine, each times what the step does of it. Arithmetic alone.

    seconds = step_s + rows x row_s + turns x layers x layer_s                Python, sampling
            + turns x layers x tokens x width x value_s                        norms, rotations, activations
            + turns x follow_s                                                 messages to others, if there are any
            + max(bytes x core_byte_s / share, bytes x busy x host_byte_s,     weights and cache, read from memory
                  flops x few_flop_s / share)                                  native kernels: while they read
            + (weight rows x restore_row_s + flops x many_flop_s) / share      torch's operators, instead of the third
            + sums x (near sum + far sum) + the logits' way to rank 0

    turns     busy x threads / cores, rounded up, at least 1: where ranks outnumber cores they take turns, and a sum
              waits for the last of them
    share     threads / turns, the cores that a rank has
    near sum  d (near_trip_s + (turns - 1) switch_s) + turns l n near_byte_s     l ranks of a host, d = ceil(log2 l), n
              bytes: each adds up what all of them wrote
    far sum   the least of what algorithms.py does over N hosts, with trips, messages, and bytes on the longest way:
              one step    1           N - 1            (N - 1) n
              doubling    k + 2 o     k + 2 o          (k + 2 o) n         k = floor(log2 N), o = 1 where N > 2^k
              scattered   2           2 (N - 1)        2 (N - 1) / N n
              trips x (far_trip_s + (turns - 1) switch_s) + bytes x far_byte_s of the link, x turns where messages are
              longer than EAGER_BYTES: MPI sends and takes those piece by piece, for which both sides need a core
              + turns x (messages x far_message_s + bytes x far_copy_s) of the cores
              In codes n is the bytes of the codes, and 3 code_value_s / share are added for each value.

Trips are of LogP's kind (Culler et al., 1993: latency, overhead of a message, gap of a byte); the maximum is that of a
roofline (Williams et al., 2009). Sums do not hide behind products, as they do in halves of long steps (`overlap`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from ollampi.kernels.codec import num_bytes

FEW_TOKENS = 8  # steps of more are computed by torch's operators, as kernels.choice finds it on most machines
EAGER_BYTES = 2**16  # of Open MPI over TCP (btl_tcp_eager_limit)
_CODED = 3  # times that a value is encoded or decoded in a sum: its codes, those of others, those of the sum
_FLOAT_BYTES = 4

Counts = dict[str, float]  # by the name of a constant: how often a step takes it


@dataclass(frozen=True)
class Constants:
    """The seconds of one unit of each kind, on one machine and link, for weights of one format.

    step_s: of a step; row_s: of an answer's row of logits; layer_s: of a layer whatever is computed; value_s: of each
    value of a layer's input; follow_s: of a step of several ranks; core_byte_s: a byte that one core reads;
    host_byte_s: a byte that the ranks of a host read together; few_flop_s, many_flop_s: an addition or multiplication
    of one core in native kernels, and in torch's operators; restore_row_s: a row of weights for these; near_*: in a
    host, far_*: between hosts: a trip and a byte on the link, a message and a byte for a core; switch_s: a wait for a
    core; code_value_s: to encode or decode a value.
    """

    step_s: float = 1e-3
    row_s: float = 5e-5
    layer_s: float = 1e-4
    follow_s: float = 1e-4
    core_byte_s: float = 1e-10
    host_byte_s: float = 1e-11
    restore_row_s: float = 1e-7
    value_s: float = 5e-9
    few_flop_s: float = 2e-11
    many_flop_s: float = 1e-11
    near_trip_s: float = 2e-5
    near_byte_s: float = 1e-10
    far_trip_s: float = 2e-4
    far_byte_s: float = 8e-10  # 10 Gbit/s
    far_message_s: float = 5e-6
    far_copy_s: float = 2e-10
    switch_s: float = 2e-5
    code_value_s: float = 5e-10


ASSUMED = Constants()  # of the right order on any machine of today
NAMES = tuple(field.name for field in fields(Constants))


@dataclass(frozen=True)
class Work:
    """What a step is for the rank that has most to do.

    read_bytes: of weights and cache; flops: additions and multiplications; tokens: in the step; rows: of logits; sums:
    over all ranks, each of sum_values for each token; gather_bytes: of logits, over all ranks; native: whether native
    kernels multiply; weight_rows: of the matrices, where they do not.
    """

    read_bytes: float
    flops: float = 0.0
    tokens: int = 1
    rows: int = 1
    layers: int = 0
    sums: int = 0
    sum_values: int = 0
    gather_bytes: float = 0.0
    native: bool = True
    weight_rows: float = 0.0

    @property
    def sum_bytes(self) -> int:
        """Return the bytes of a sum in fp32."""
        return self.tokens * self.sum_values * _FLOAT_BYTES


@dataclass(frozen=True)
class Site:
    """Where the ranks of a replica lie: `local` of them at most on each of so many hosts, with `threads` each.

    busy: the ranks that compute at one time on a host, those of other replicas too, and share its memory; cores: of a
    host, None for enough; level: of the codes that sums between hosts may have, 0 for none.
    """

    local: int = 1
    hosts: int = 1
    busy: int = 1
    threads: int = 1
    cores: int | None = None
    level: int = 0

    @property
    def turns(self) -> int:
        """Return how many turns the ranks of a host take on its cores."""
        return 1 if self.cores is None else max(1, math.ceil(self.busy * self.threads / self.cores))

    @property
    def share(self) -> float:
        """Return the cores that a rank has."""
        return self.threads / self.turns


def step_s(work: Work, site: Site, constants: Constants) -> float:
    """Return the seconds of a step."""
    return seconds_of(counts(work, site, constants), constants)


def counts(work: Work, site: Site, constants: Constants) -> Counts:
    """Return how often a step takes each constant; which way of several it goes depends on the constants."""
    one = added([near_counts(work, site), far_counts(work, site, constants)])
    return added([own_counts(work, site, constants), times(work.sums, one), gather_counts(work, site)])


def own_counts(work: Work, site: Site, constants: Constants) -> Counts:
    """Return the counts of what is not between ranks."""
    turns, share = site.turns, site.share
    bounds = {"core_byte_s": work.read_bytes / share, "host_byte_s": work.read_bytes * site.busy}
    behind = {"few_flop_s": work.flops / share} if work.native else {}
    apart = {} if work.native else {"restore_row_s": work.weight_rows / share, "many_flop_s": work.flops / share}
    return {
        "step_s": 1.0,
        "row_s": float(work.rows),
        "layer_s": work.layers * turns,
        "value_s": work.layers * work.tokens * work.sum_values * turns,
        "follow_s": turns if site.local * site.hosts > 1 else 0.0,
        **_most({**bounds, **behind}, constants),
        **apart,
    }


def near_counts(work: Work, site: Site) -> Counts:
    """Return the counts of a sum over the ranks of a host."""
    if site.local == 1:
        return {}
    trips, turns = doublings(site.local), site.turns
    read = turns * site.local * work.sum_bytes
    return {"near_trip_s": float(trips), "near_byte_s": read, "switch_s": trips * (turns - 1)}


def far_counts(work: Work, site: Site, constants: Constants) -> Counts:
    """Return the counts of a sum over hosts, in codes where these are faster by a tenth."""
    if site.hosts == 1:
        return {}
    turns = site.turns
    exact = _least(_ways(work.sum_bytes, site.hosts, turns), constants)
    if site.level == 0:
        return exact
    values = work.tokens * work.sum_values
    coded = _least(_ways(num_bytes(site.level, values), site.hosts, turns), constants)
    coded = {**coded, "code_value_s": _CODED * values / site.share}
    return coded if seconds_of(coded, constants) < 0.9 * seconds_of(exact, constants) else exact


def gather_counts(work: Work, site: Site) -> Counts:
    """Return the counts of the logits' way to rank 0."""
    ranks = site.hosts * site.local
    if ranks == 1:
        return {}
    sent = work.gather_bytes * (ranks - site.local) / ranks
    near = {"near_trip_s": 1.0, "near_byte_s": work.gather_bytes * (site.local - 1) / ranks} if site.local > 1 else {}
    return {**near, **(_sent(1, site.hosts - 1, sent, site.turns) if site.hosts > 1 else {})}


def seconds_of(found: Mapping[str, float], constants: Constants) -> float:
    """Return the seconds of some counts."""
    return sum(count * float(getattr(constants, name)) for name, count in found.items())


def added(parts: Iterable[Counts]) -> Counts:
    """Return the sums of some counts."""
    total: Counts = {}
    for part in parts:
        for name, count in part.items():
            total[name] = total.get(name, 0.0) + count
    return total


def times(factor: float, found: Counts) -> Counts:
    """Return counts so many times."""
    return {name: factor * count for name, count in found.items()}


def doublings(ranks: int) -> int:
    """Return how often a rank is doubled until there are so many, for one rank 0."""
    return (ranks - 1).bit_length()


def _ways(size: float, hosts: int, turns: int) -> list[Counts]:
    """Return the counts of each way to sum so many bytes over hosts."""
    others, paired = hosts - 1, hosts.bit_length() - 1
    doubled = paired + 2 * (hosts > 1 << paired)
    return [
        _sent(1, others, others * size, turns),
        _sent(doubled, doubled, doubled * size, turns),
        _sent(2, 2 * others, 2 * others / hosts * size, turns),
    ]


def _sent(trips: int, messages: int, size: float, turns: int) -> Counts:
    """Return the counts of so many trips, with messages of so many bytes in all."""
    return {
        "far_trip_s": float(trips),
        "far_byte_s": size * (turns if size > messages * EAGER_BYTES else 1.0),
        "far_message_s": turns * messages,
        "far_copy_s": turns * size,
        "switch_s": trips * (turns - 1),
    }


def _least(ways: list[Counts], constants: Constants) -> Counts:
    """Return the way that takes least."""
    return min(ways, key=lambda way: seconds_of(way, constants))


def _most(ways: Counts, constants: Constants) -> Counts:
    """Return the one of some counts that takes most."""
    name = max(ways, key=lambda name: seconds_of({name: ways[name]}, constants))
    return {name: ways[name]}
