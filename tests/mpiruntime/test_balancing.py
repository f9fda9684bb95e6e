"""Which replica gets a request, and on which ranks a model is placed: plain decisions, no ranks needed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint

from ollampi.mpiruntime.balancing import Balancer, cached_tokens
from ollampi.mpiruntime.block_manager import BlockManager
from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.cost_model import Work
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import MemoryShortError, ModelError
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.request import GenerateRequest, ModelRef
from ollampi.mpiruntime.scheduler import Scheduler
from ollampi.mpiruntime.sequence import Sequence
from ollampi.mpiruntime.strategy import Chooser, Groups
from ollampi.mpiruntime.token_cost import Estimate
from ollampi.mpiruntime.world import RankFacts

PROMPT = list(range(1, 18))


def scheduler(requests: int = 0) -> Scheduler:
    """Return the scheduler of a replica with so many requests."""
    made = Scheduler(BlockManager(64, 4), 64, 64, 64)
    for _ in range(requests):
        made.add(Sequence(GenerateRequest(ModelRef("m", "/m"), PROMPT), 128, seed=0))
    return made


def test_least_connections_takes_the_one_with_the_fewest_and_turns_among_equals() -> None:
    balancer = Balancer("least_connections")
    assert balancer.choose([scheduler(2), scheduler(1), scheduler(3)], PROMPT) == 1
    equal = [scheduler() for _ in range(3)]
    assert Counter(balancer.choose(equal, PROMPT) for _ in range(9)) == {0: 3, 1: 3, 2: 3}


def test_round_robin_takes_turns_whatever_they_have() -> None:
    balancer = Balancer("round_robin")
    replicas = [scheduler(9), scheduler(), scheduler()]
    assert [balancer.choose(replicas, PROMPT) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_random_takes_any() -> None:
    balancer = Balancer("random")
    assert {balancer.choose([scheduler()] * 3, PROMPT) for _ in range(200)} == {0, 1, 2}


@pytest.mark.parametrize(("requests", "chosen"), [(4, 1), (5, 0)])
def test_prefix_aware_takes_the_one_that_holds_the_prompt_unless_it_is_much_busier(requests: int, chosen: int) -> None:
    near = scheduler(requests)
    near.max_running = requests
    planned = near.plan()
    for sequence, chunk in planned:
        near.advance(sequence, len(chunk.tokens))
    assert cached_tokens(near, PROMPT) == 16
    assert cached_tokens(near, [9, *PROMPT]) == 0
    assert Balancer("prefix_aware").choose([scheduler(), near], PROMPT) == chosen


def chooser(
    tmp_path: Path, hosts: list[str], least_shards: int = 1, size_bytes: int = 10**9, **changes: Any
) -> Chooser:
    """Return what chooses for ranks on these hosts, of which a model needs so many; changes: of the Chooser."""
    facts = [RankFacts(rank, host, 0, 1, [0], 1, 1, 0) for rank, host in enumerate(hosts)]

    def fits(groups: Groups, settings: EngineSettings) -> None:
        if min(map(len, groups)) < least_shards:
            raise MemoryShortError(f"{len(groups[0])} are too few")

    config = read_config(write_checkpoint(tmp_path / "m"))
    cost = Estimate(lambda shards, rows: Work(size_bytes / shards, tokens=rows, rows=rows, sums=5, sum_values=2048))
    values = {"usable": range(len(hosts)), "held": {}, "cost": cost, **changes}
    return Chooser(facts=facts, config=config, settings=EngineSettings(), fits=fits, **values)


@pytest.mark.parametrize(
    ("strategy", "size_bytes", "shards"),
    [
        ("auto", 10**3, 2),
        ("auto", 10**10, 4),
        ("speed-optimized", 10**10, 4),
        ("speed-optimized", 10**3, 2),
        ("balanced", 10**10, 2),
        ("memory-optimized", 10**3, 4),
    ],
)
def test_strategies_weigh_the_weights_of_a_shard_against_the_sums(
    tmp_path: Path, strategy: str, size_bytes: int, shards: int
) -> None:
    """Two shards are the fewest that fit."""
    layout = chooser(tmp_path, ["h"] * 4, least_shards=2, size_bytes=size_bytes).choose(Wish(strategy=strategy))
    assert layout.groups == (tuple(range(shards)),)
    assert (layout.strategy, str(shards) in layout.why) == (strategy, True)
    assert layout.settings.quantize == ("q4" if strategy == "memory-optimized" else "auto")


def test_ranks_that_hold_least_come_first_and_one_host_is_preferred(tmp_path: Path) -> None:
    made = chooser(tmp_path, ["a", "b", "a", "b"], held={0: 5, 1: 1, 2: 5})
    assert made.choose(Wish(shards=2)).groups == ((1, 3),)
    assert made.choose(Wish(shards=2, replicas=2)).groups == ((1, 3), (0, 2))
    assert made.choose(Wish(shards=3)).groups == ((0, 1, 3),)


def test_what_fits_nowhere_is_the_error_of_the_most_shards(tmp_path: Path) -> None:
    for strategy in ("auto", "memory-optimized"):
        with pytest.raises(ModelError, match="3 are too few"):
            chooser(tmp_path, ["h"] * 3, least_shards=9).choose(Wish(strategy=strategy))
