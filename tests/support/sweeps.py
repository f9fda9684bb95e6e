"""Records of sweeps as arithmetic makes them."""

from __future__ import annotations

from collections.abc import Sequence

from sweep_points import Load, Point, Server
from sweep_records import Record, Repeat


def repeat(
    first_s: float, token_s: float, load: Load, compute_s: Sequence[float], exchange_s: Sequence[float]
) -> Repeat:
    """Return a round in which all requests took the same time; rank 0 needs 0.1 s beside forward passes."""
    wall_s = first_s + (load.output - 1) * token_s
    each = [first_s] * load.concurrency, [token_s] * load.concurrency
    return Repeat(wall_s, *each, load.concurrency * load.output, list(compute_s), list(exchange_s), 0.1)


def record(
    server: Server, load: Load, token_s: Sequence[float], first_s: float = 0.1, shard_bytes: int = 0, error: str = ""
) -> Record:
    """Return a record with a repeat for each time of a token; every replica has consecutive ranks.

    Ranks compute for 3 s; the first of a replica exchanges for 1 s, and each one behind it for a second more.
    """
    groups = [list(range(i * server.shards, (i + 1) * server.shards)) for i in range(server.replicas)]
    compute, exchange = [3.0] * server.ranks, [1.0 + rank % server.shards for rank in range(server.ranks)]
    repeats = [repeat(first_s, seconds, load, compute, exchange) for seconds in token_s]
    size = shard_bytes or 1200 * 2**20 // server.shards
    point = Point(server, load)
    sizes = [size] * server.ranks
    return Record(
        point.text, "demo", "0123456789abcdef", point, repeats, groups, sizes, sizes, 5.0, 2.0, error, "here", "now"
    )
