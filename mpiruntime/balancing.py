"""Choose the replica of a model to which a request goes. Rank 0 only."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ollampi.mpiruntime.block_manager import block_digest
from ollampi.mpiruntime.scheduler import Scheduler

BALANCING = ("least_connections", "round_robin", "random", "prefix_aware")
_BUSIER = 4  # requests that a replica may have more than another one, and still get what its cache holds


class Balancer:
    """The choices of one model. how: one of BALANCING; which replica comes next may depend on those before."""

    def __init__(self, how: str) -> None:
        self._how = how
        self._turn = 0
        self._draw = random.Random()

    def choose(self, replicas: Sequence[Scheduler], prompt: Sequence[int]) -> int:
        """Return which of the replicas, one or more, takes a request; prompt: its tokens where they matter."""
        self._turn += 1
        if self._how == "random":
            return self._draw.randrange(len(replicas))
        if self._how == "round_robin":
            return (self._turn - 1) % len(replicas)
        loads = [num_requests(replica) for replica in replicas]
        order = [(place + self._turn - 1) % len(replicas) for place in range(len(replicas))]  # those alike take turns
        if self._how == "prefix_aware":
            near = [place for place in order if loads[place] <= min(loads) + _BUSIER]
            held = {place: cached_tokens(replicas[place], prompt) for place in near}
            return min(near, key=lambda place: (-held[place], loads[place]))
        return min(order, key=lambda place: loads[place])


def num_requests(replica: Scheduler) -> int:
    """Return how many sequences a replica computes or has waiting."""
    return len(replica.running) + len(replica.waiting)


def cached_tokens(replica: Scheduler, prompt: Sequence[int]) -> int:
    """Return of how many tokens of a prompt's beginning the replica's cache holds the blocks."""
    size, digest = replica.blocks.block_size, b""
    for start in range(0, len(prompt) - size + 1, size):
        digest = block_digest(digest, list(prompt[start : start + size]))
        if not replica.blocks.has(digest):
            return start
    return len(prompt) // size * size
