"""Decide what a load gets from what its ranks found. Rank 0 only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ollampi.mpiruntime.cache_size import RankMemory, Room, room
from ollampi.mpiruntime.same_files import check_same
from ollampi.mpiruntime.step import Check
from ollampi.mpiruntime.streaming import remedy


def room_for(check: Check, found: Sequence[Sequence[RankMemory]], ranks: Sequence[int], on_gpu: bool) -> Room:
    """Return how many cache blocks each replica of a load can have, and how many layers are streamed.

    found: by the ranks of its groups, in their order, for each replica that a rank has a part in; on_gpu: whether they
    compute there. Raise ModelError where they see different files, or memory is short.
    """
    owners = [rank for rank, each in zip(ranks, found, strict=True) for _ in each]
    memories = [memory for each in found for memory in each]
    firsts = {rank.host: place for place, rank in reversed(list(enumerate(memories)))}
    for host, place in firsts.items():
        promised = memories[place].promised_bytes + check.beside.get(host, 0)
        memories[place] = replace(memories[place], promised_bytes=promised)
    check_same([rank.host for rank in memories], [rank.files for rank in memories], owners)
    paths = " and ".join([check.path, *check.drafts])
    what = f"{paths} with dtype={check.dtype} and {check.num_blocks * check.block_size} cache tokens"
    what += f" in each of {len(check.replicas)} replicas" if len(check.replicas) > 1 else ""
    sizes = check.num_blocks, check.most_blocks, check.fraction
    return room(memories, *sizes, what, remedy(check, on_gpu), check.stream == "always", check.block_size)
