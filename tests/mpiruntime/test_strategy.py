"""On how many ranks a model lies, in how many replicas, and on which: by estimates that are given, no ranks needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint

from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.cost_model import Constants, Work
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import MemoryShortError, RequestError
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.strategy import Chooser, Groups
from ollampi.mpiruntime.token_cost import Estimate, Rates
from ollampi.mpiruntime.world import RankFacts

BARE = dict.fromkeys(Constants.__dataclass_fields__, 0.0)
HEAVY = {"core_byte_s": 1e-9}  # reading is all that counts: every rank helps
STEPS = {"step_s": 1e-2}  # each step costs as much, whatever is in it: many answers in one are best
SUMS = {"core_byte_s": 1e-11, "near_trip_s": 1e-3, "far_trip_s": 1e-2}  # sums cost more than they help
ROWS = {"few_flop_s": 1e-10}  # each answer costs as much as all others


class Given:
    """Seconds for a step by shards and rows, whatever hosts there are."""

    def __init__(self, seconds: Callable[[int, int], float]) -> None:
        self._seconds = seconds

    def seconds(self, hosts: Sequence[str], rows: int = 1, beside: Sequence[str] = ()) -> float:
        return self._seconds(len(hosts), rows)

    def told(self, hosts: Sequence[str], rows: int = 1, beside: Sequence[str] = ()) -> str:
        return f"from a table for {len(hosts)} ranks with {len(beside)} beside"


@pytest.fixture
def chooser(tmp_path: Path) -> Callable[..., Chooser]:
    config = read_config(write_checkpoint(tmp_path / "m"))

    def make(hosts: str, least: int = 1, most_ranks: int = 99, **changes: Any) -> Chooser:
        """Return what chooses for ranks on hosts of a letter; `least` ranks hold a replica, most_ranks all of them."""

        def fits(groups: Groups, settings: EngineSettings) -> None:
            if len(groups[0]) < least or sum(map(len, groups)) > most_ranks:
                raise MemoryShortError(f"{len(groups)} replicas of {len(groups[0])} shards are too much")

        facts = [RankFacts(rank, host, 0, 1, [0], 1, 1, 0) for rank, host in enumerate(hosts)]
        values: dict[str, Any] = {"usable": range(len(hosts)), "held": {}, **changes}
        return Chooser(facts=facts, config=config, settings=EngineSettings(), fits=fits, **values)

    return make


def cost(constants: dict[str, float], weights: int = 10**8) -> Estimate:
    """Return the estimate of a model of so many weights of a byte each."""

    def work(shards: int, rows: int) -> Work:
        return Work(weights / shards, 2 * weights * rows / shards, rows, rows, sums=10, sum_values=64)

    return Estimate(work, Rates(constants=Constants(**{**BARE, **constants})))


@pytest.mark.parametrize(
    ("hosts", "constants", "streams", "shards", "replicas"),
    [
        ("aaaa", HEAVY, 1, 4, 1),
        ("aaaa", HEAVY, None, 4, 1),
        ("aaaa", HEAVY, 8, 4, 1),
        ("aaaa", STEPS, 8, 1, 1),  # a second replica would halve the steps, and gain nothing
        ("aaaa", SUMS, 1, 1, 1),
        ("aaaa", SUMS, 8, 1, 1),  # 8 answers in the step of one
        ("aaaa", {**SUMS, **ROWS}, 8, 1, 4),  # each replica takes 2 of them
        ("aaaa", {**SUMS, **ROWS}, 2, 1, 2),  # no more replicas than answers
        ("aaaa", {**SUMS, **ROWS}, 1, 1, 1),
        ("aabb", {**HEAVY, "few_flop_s": 2.5e-10, "far_trip_s": 1e-2}, 4, 2, 2),  # 12.5 ms for a token, (2, 1): 25
        ("aaaa", {"host_byte_s": 1e-9}, 8, 1, 1),  # the memory of the host is all that counts
    ],
)
def test_auto_chooses_shards_and_replicas(
    chooser: Callable[..., Chooser],
    hosts: str,
    constants: dict[str, float],
    streams: int | None,
    shards: int,
    replicas: int,
) -> None:
    layout = chooser(hosts, cost=cost(constants)).choose(Wish(streams=streams))
    assert (len(layout.groups[0]), len(layout.groups)) == (shards, replicas)


def test_replicas_that_are_given_stay(chooser: Callable[..., Chooser]) -> None:
    made = chooser("aaaa", cost=cost(ROWS))
    assert len(made.choose(Wish(streams=8, replicas=1)).groups) == 1
    assert len(made.choose(Wish(streams=8, replicas=3)).groups) == 3
    assert made.choose(Wish(streams=8, shards=2)).groups == ((0, 1), (2, 3))
    assert made.choose(Wish(shards=2)).groups == ((0, 1),)


@pytest.mark.parametrize(
    ("strategy", "streams", "why"),
    [
        (
            "auto",
            1,
            "1 shard is the fewest that fits and is about as fast as any, an estimated 10.00 ms for each token",
        ),
        ("balanced", 1, "1 shard is the fewest within twice the least time, an estimated 10.00 ms for each token"),
        ("speed-optimized", 1, "2 shards are the fastest for one stream, an estimated 9.00 ms for each token"),
        (
            "auto",
            4,
            "1 replica of 1 shard takes the fewest ranks of all that fit and are about as fast as any, an estimated"
            " 400 tokens/s, 10.00 ms for each step",
        ),
        (
            "speed-optimized",
            4,
            "2 replicas of 1 shard are the fastest for 4 streams, an estimated 444.4 tokens/s, 9.00 ms for each step",
        ),
    ],
)
def test_why_is_a_sentence(chooser: Callable[..., Chooser], strategy: str, streams: int, why: str) -> None:
    times = {(1, 4): 10.0, (1, 2): 9.0, (1, 1): 10.0, (2, 1): 9.0, (2, 4): 9.5, (2, 2): 30.0}
    given = Given(lambda shards, rows: times.get((shards, rows), 99.0) * 1e-3)
    layout = chooser("aa", cost=given).choose(Wish(strategy=strategy, streams=streams))
    assert layout.why.startswith(f"{why}, from a table for")


def test_what_is_faster_and_does_not_fit_is_left(chooser: Callable[..., Chooser]) -> None:
    def groups(**how: Any) -> tuple[int, int]:
        found = chooser("aaaa", cost=cost({**SUMS, **ROWS}), **how).choose(Wish(streams=4)).groups
        return len(found[0]), len(found)

    assert groups() == (1, 4)
    assert groups(most_ranks=3) == (1, 2)  # three replicas have 2 answers in a step too
    assert groups(least=2) == (2, 2)
    assert groups(least=3) == (3, 1)
    with pytest.raises(MemoryShortError, match="1 replicas of 4 shards are too much"):
        groups(least=5)


def test_each_size_is_asked_about_once(chooser: Callable[..., Chooser]) -> None:
    asked: list[Groups] = []
    made = chooser("aaaaaaaa", cost=cost(HEAVY))
    made = Chooser(**{**vars(made), "fits": lambda groups, settings: asked.append(groups)})
    made.choose(Wish(streams=8))
    assert 0 < len(asked) <= 2
    assert len(set(asked)) <= 2


@pytest.mark.parametrize("streams", [0, -1])
def test_no_streams_are_refused(chooser: Callable[..., Chooser], streams: int) -> None:
    with pytest.raises(RequestError, match=f"streams={streams} are none; use at least 1"):
        chooser("aa", cost=cost(HEAVY)).choose(Wish(streams=streams))


def test_a_model_stays_where_it_is_where_others_are_no_better(chooser: Callable[..., Chooser]) -> None:
    made = chooser("aaaa", cost=cost(HEAVY), before=frozenset({2, 3}))
    assert made.spread(2, 1) == ((2, 3),)
    assert made.spread(2, 2) == ((2, 3), (0, 1))
    busy = chooser("aaaa", cost=cost(HEAVY), before=frozenset({2, 3}), held={2: 1})
    assert busy.spread(2, 1) == ((0, 3),)
