"""Decide how many blocks a model's KV cache gets from the memory that is free on every host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.memory import human


@dataclass(frozen=True)
class RankMemory:
    """What a load needs on one rank, and what there is, in bytes.

    fixed_bytes: weights and buffers; block_bytes: one block of the cache; free_bytes: free on its host now;
    promised_bytes: what caches of models that stay have not taken yet; freed_bytes: what models that leave give back;
    files: what it sees of the model's files, as same_files.digests.
    """

    host: str
    fixed_bytes: int
    block_bytes: int
    free_bytes: int
    promised_bytes: int
    freed_bytes: int
    files: dict[str, str] = field(default_factory=dict)


def cache_blocks(ranks: Sequence[RankMemory], least: int, most: int, fraction: float, what: str) -> int:
    """Return the number of blocks, equal on all ranks, that the host with the least memory allows.

    From `least` to `most`; beyond `least`, at most `fraction` of what the weights leave over. Raise ModelError about
    `what` where a host cannot have `least`.
    """
    hosts = dict.fromkeys(rank.host for rank in ranks)
    return max(least, min(most, *(_host_blocks(host, ranks, least, fraction, what) for host in hosts)))


def _host_blocks(host: str, ranks: Sequence[RankMemory], least: int, fraction: float, what: str) -> int:
    """Return how many blocks the ranks of a host can have each; raise ModelError where `least` are too many."""
    local = [rank for rank in ranks if rank.host == host]
    free = min(r.free_bytes for r in local) + sum(r.freed_bytes - r.promised_bytes for r in local)
    fixed, block = sum(r.fixed_bytes for r in local), sum(r.block_bytes for r in local)
    needed = fixed + least * block
    if needed > free:
        raise ModelError(
            f"{what} needs {human(needed)} on host {host} ({len(local)} ranks) but {human(max(0, free))} are free;"
            " use more hosts, dtype=bfloat16, engine.cache_dtype=int8,"
            " or a smaller engine.cache_tokens or engine.context_length"
        )
    return int((free - fixed) * fraction) // block
