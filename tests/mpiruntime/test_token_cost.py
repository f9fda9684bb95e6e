"""What a token takes is estimated from what was measured, and from constants where nothing was."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint

from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.exchange import choose_exchange
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.reading_rate import measure_reading
from ollampi.mpiruntime.strategy import Chooser, Layout
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.token_cost import ASSUMED, Estimate, Rates, SumTimes
from ollampi.mpiruntime.world import RankFacts, survey

NEAR = SumTimes(2, {8192: 4e-6, 1 << 20: 200e-6})
FAR = SumTimes(4, {8192: 100e-6, 1 << 20: 20e-3})


@pytest.mark.parametrize(
    ("size", "ranks", "seconds"),
    [
        (8192, 2, 4e-6),
        (4096, 2, 4e-6),  # a message takes its time however short it is
        (1 << 20, 2, 200e-6),
        (1 << 21, 2, 400e-6),
        ((8192 + (1 << 20)) // 2, 2, 102e-6),
        (8192, 4, 8e-6),
        (8192, 5, 12e-6),
        (8192, 1, 0.0),
    ],
)
def test_a_sum_takes_what_was_measured_around_it(size: int, ranks: int, seconds: float) -> None:
    assert NEAR.of(size, ranks) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("hosts", "rates", "seconds"),
    [
        (["a"], ASSUMED, 1.0),
        (["a"] * 2, ASSUMED, 0.5 + 10 * 20e-6),
        (["a"] * 4, ASSUMED, 0.25 + 10 * 40e-6),
        (["a", "b"], ASSUMED, 0.5 + 10 * 200e-6),
        (["a", "a", "b"], ASSUMED, 1 / 3 + 10 * 220e-6),
        (["a"], Rates(2e10), 0.5),
        (["a"] * 2, Rates(2e10, 3e10), 1 / 3 + 10 * 20e-6),  # the memory of a host gives no more
        (["a", "b"], Rates(2e10, 3e10), 0.25 + 10 * 200e-6),
        (["a"] * 2, Rates(near=NEAR), 0.5 + 10 * 4e-6),
        (["a", "b"], Rates(near=NEAR), 0.5 + 10 * 200e-6),
        (["a", "b", "c", "d"], Rates(far=FAR), 0.25 + 10 * 100e-6),
        (["a", "b"], Rates(far=FAR), 0.5 + 10 * 50e-6),
        (["a", "a", "b", "b"], Rates(near=NEAR, far=FAR), 0.25 + 10 * 54e-6),
    ],
)
def test_a_token_takes_the_reading_of_weights_and_the_sums(hosts: list[str], rates: Rates, seconds: float) -> None:
    assert Estimate(10**10, 10, 8192, rates).seconds(hosts) == pytest.approx(seconds)


def test_the_words_say_which_figures_were_measured() -> None:
    assert Estimate(1, 1, 8192).told(["a"]) == "from weights read at 10.0 GB/s by each rank (assumed)"
    assert Estimate(1, 1, 8192).told(["a", "a"]) == (
        "from weights read at 10.0 GB/s by each rank (assumed) and sums of 8 KiB in 20.0 us (assumed)"
    )
    rates = Rates(12e9, 18e9, NEAR)
    assert Estimate(1, 1, 8192, rates).told(["a", "a"]) == (
        "from weights read at 9.0 GB/s by each rank (measured) and sums of 8 KiB in 4.0 us (measured)"
    )
    assert "in 204 us (assumed)" in Estimate(1, 1, 8192, rates).told(["a", "a", "b"])


def chosen(tmp_path: Path, rates: Rates, strategy: str) -> Layout:
    """Return where a model of 100 MB and 100 sums for each token lies on four ranks of a host."""
    facts = [RankFacts(rank, "h", rank, 4, [rank], 4, 1, 0) for rank in range(4)]
    config = read_config(write_checkpoint(tmp_path / "m"))
    cost = Estimate(10**8, 100, 8192, rates)
    made = Chooser(facts, range(4), {}, config, cost, EngineSettings(), lambda groups, settings: None)
    return made.choose(Wish(strategy=strategy))


@pytest.mark.parametrize(
    ("rates", "shards"),
    [
        (ASSUMED, 4),  # 10, 7, 6.5 (3 ranks: 3.3 + 4) and 6.5 ms
        (Rates(1e10, 1e10), 1),  # one rank reads all that the memory gives
        (Rates(1e10, 4e10, SumTimes(4, {8192: 1e-6})), 4),
        (Rates(1e10, 4e10, SumTimes(4, {8192: 1e-3})), 1),
        (Rates(1e10, 2e10, SumTimes(2, {8192: 1e-6})), 2),
    ],
)
def test_a_strategy_follows_what_was_measured(tmp_path: Path, rates: Rates, shards: int) -> None:
    layout = chosen(tmp_path, rates, "speed-optimized")
    assert layout.groups == (tuple(range(shards)),)
    assert ("(measured)" in layout.why, "(assumed)" in layout.why) == (rates is not ASSUMED, rates is ASSUMED) or (
        shards > 1 and rates.near is None
    )


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_know_the_same_rates_of_reading(size: int) -> None:
    found = run_threads(size, lambda comm: measure_reading(comm, survey(comm)))
    assert len(set(found)) == 1
    assert all(rate is not None and rate > 0 for rate in found[0])


def test_one_rank_and_gpus_measure_nothing() -> None:
    assert measure_reading(Single(), survey(Single())) == (None, None)

    def with_gpus(comm: Communicator) -> tuple[float | None, float | None]:
        facts = [RankFacts(rank, "h", rank, 2, [0], 1, 1, 0, device="cuda:0") for rank in range(2)]
        return measure_reading(comm, facts)

    assert run_threads(2, with_gpus) == [(None, None)] * 2


@pytest.mark.parametrize("link", ["auto", "shared", pytest.param("mpi", id="as asked")])
def test_the_exchange_tells_what_its_sums_took(link: str, tmp_path: Path) -> None:
    def timed(comm: Communicator) -> SumTimes | None:
        return choose_exchange(comm, survey(comm), ExchangeSettings(link=link), False, tmp_path).timed

    for found in run_threads(3, timed):
        if link == "mpi":
            assert found is None  # as asked for: nothing is compared
        else:
            assert found is not None
            assert (found.ranks, sorted(found.seconds)) == (3, [8 << 10, 1 << 20])
            assert all(seconds > 0 for seconds in found.seconds.values())
