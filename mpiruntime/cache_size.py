"""Decide how many blocks a model's KV cache gets from the memory that is free on every host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ollampi.mpiruntime.errors import MemoryShortError
from ollampi.mpiruntime.memory import human


@dataclass(frozen=True)
class RankMemory:
    """What a load needs on one rank, and what there is, in bytes.

    fixed_bytes: weights and buffers, with no layer streamed, with one, and so on, as far as that can be; block_bytes:
    one block of the cache; free_bytes: free there now; promised_bytes: what caches of models that stay have not
    taken yet; freed_bytes: what models that leave give back; files: what it sees of the model's files, as
    same_files.digests; holder: whose memory it is, in words, equal for ranks that share it, "" for the host's;
    own_bytes: what the limits of its process leave it, None without any.
    """

    host: str
    fixed_bytes: list[int]
    block_bytes: int
    free_bytes: int
    promised_bytes: int
    freed_bytes: int
    files: dict[str, str] = field(default_factory=dict)
    holder: str = ""
    own_bytes: int | None = None


@dataclass(frozen=True)
class Room:
    """What a load gets on all ranks: blocks of the cache, and how many layers are streamed."""

    num_blocks: int
    num_streamed: int = 0


def room(
    ranks: Sequence[RankMemory],
    least: int,
    most: int,
    fraction: float,
    what: str,
    remedy: str = "",
    always: bool = False,
    block_size: int = 0,
) -> Room:
    """Return what the host, or GPU, with the least memory allows: as few streamed layers as can be, then blocks.

    Blocks from `least` to `most`; beyond `least`, at most `fraction` of what the weights leave over. always: stream all
    layers that can be. Raise MemoryShortError about `what` where a host cannot have `least`; remedy: one more to name;
    block_size: positions of a block, to say of how many the largest cache is that would fit.
    """
    holders = [[rank for rank in ranks if _holder(rank) == holder] for holder in dict.fromkeys(map(_holder, ranks))]
    holders += [[_within_limits(rank, rank.own_bytes)] for rank in ranks if rank.own_bytes is not None]
    counts = range(min(len(rank.fixed_bytes) for rank in ranks))
    for count in counts[-1:] if always else counts:
        if all(_left(local, count) >= least * _block_bytes(local) for local in holders):
            blocks = (int(_left(local, count) * fraction) // _block_bytes(local) for local in holders)
            return Room(max(least, min(most, *blocks)), count)
    count = counts[-1]
    local = next(local for local in holders if _left(local, count) < least * _block_bytes(local))
    needed = sum(r.fixed_bytes[count] for r in local) + least * _block_bytes(local)
    left = min(max(0, _left(each, count)) // max(1, _block_bytes(each)) for each in holders) * block_size
    raise MemoryShortError(
        f"{what} needs {human(needed)} on {_holder(local[0])} ({len(local)} shard{'s' if len(local) > 1 else ''})"
        f"{' though layers are streamed' if count else ''} but {human(max(0, _free(local)))} are free{_largest(left)};"
        " use more hosts, dtype=bfloat16, engine.cache_dtype=int8,"
        f" or a smaller engine.cache_tokens or engine.context_length{remedy}"
    )


def _largest(tokens: int) -> str:
    """Return in words the largest cache that would fit, empty where none would."""
    return f", which is enough with at most {tokens} cache tokens" if tokens else ""


def _within_limits(rank: RankMemory, own_bytes: int) -> RankMemory:
    """Return a rank with no more than the limits of its process leave, which count a cache before it is written to."""
    return replace(rank, free_bytes=own_bytes, promised_bytes=0, holder=f"host {rank.host} within ulimit")


def _holder(rank: RankMemory) -> str:
    """Return whose memory a rank takes, in words."""
    return rank.holder or f"host {rank.host}"


def _free(local: Sequence[RankMemory]) -> int:
    """Return the bytes that a load can have of the memory that some ranks share."""
    return min(r.free_bytes for r in local) + sum(r.freed_bytes - r.promised_bytes for r in local)


def _left(local: Sequence[RankMemory], num_streamed: int) -> int:
    """Return the bytes that the weights leave over there, negative where they do not fit."""
    return _free(local) - sum(r.fixed_bytes[num_streamed] for r in local)


def _block_bytes(local: Sequence[RankMemory]) -> int:
    """Return the bytes of one block of the cache on all ranks that share a memory."""
    return sum(r.block_bytes for r in local)
