"""What a token takes is estimated from what was measured, and from constants where nothing was."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint

from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.cost_fit import Fit
from ollampi.mpiruntime.cost_model import Work
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.exchange import choose_exchange
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.reading_rate import measure_rates, measure_reading
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


def estimate(size_bytes: int, sums: int, rates: Rates = ASSUMED, **how: Any) -> Estimate:
    """Return the estimate of steps that read so many weights on all ranks and add up 8 KiB for each token."""
    free = replace(
        rates, constants=replace(rates.constants, step_s=0.0, row_s=0.0, layer_s=0.0, value_s=0.0, follow_s=0.0)
    )

    def work(shards: int, rows: int) -> Work:
        return Work(size_bytes / shards, rows * size_bytes / shards, rows, rows, 4, sums, 2048)

    return Estimate(work, free, **how)


NEAR_S, FAR_S = 2e-5 + 2 * 8192 * 1e-10, 2e-4 + 5e-6 + 8192 * 1e-9  # assumed, of a sum over two ranks


@pytest.mark.parametrize(
    ("hosts", "rates", "seconds"),
    [
        (["a"], ASSUMED, 1.0),
        (["a"] * 2, ASSUMED, 0.5 + 10 * NEAR_S),
        (["a"] * 4, ASSUMED, 0.25 + 10 * 2 * NEAR_S),
        (["a", "b"], ASSUMED, 0.5 + 10 * FAR_S),
        (["a", "a", "b"], ASSUMED, 1 / 3 + 10 * (NEAR_S + FAR_S)),
        (["a"] * 20, ASSUMED, 0.1 + 10 * (5 * 2e-5 + 20 * 8192 * 1e-10)),  # a host's memory gives 100 GB/s
        (["a"], Rates(2e10), 0.5),
        (["a"] * 2, Rates(2e10, 3e10), 1 / 3 + 10 * NEAR_S),  # the memory of a host gives no more
        (["a", "b"], Rates(2e10, 3e10), 0.25 + 10 * FAR_S),
        (["a"] * 2, Rates(near=NEAR), 0.5 + 10 * 4e-6),
        (["a", "b"], Rates(near=NEAR), 0.5 + 10 * FAR_S),
        (["a", "b", "c", "d"], Rates(far=FAR), 0.25 + 10 * 100e-6),
        (["a", "b"], Rates(far=FAR), 0.5 + 10 * 50e-6),
        (["a", "a", "b", "b"], Rates(near=NEAR, far=FAR), 0.25 + 10 * 54e-6),
    ],
)
def test_a_token_takes_the_reading_of_weights_and_the_sums(hosts: list[str], rates: Rates, seconds: float) -> None:
    # logits go to rank 0 once; of none there is only the trip
    made = estimate(10**10, 10, rates)
    near, far = max(Counter(hosts).values()) > 1, len(set(hosts)) > 1
    logits = 2e-5 * near + (2e-4 + 5e-6 * (len(set(hosts)) - 1)) * far
    assert made.seconds(hosts) - logits == pytest.approx(seconds)


def test_threads_cores_and_replicas_count() -> None:
    rates = Rates(2e10, 3e10)
    assert estimate(10**10, 0, rates, threads=2, cores={"a": 2}).seconds(["a"]) == pytest.approx(0.5)
    assert estimate(10**10, 0, rates, cores={"a": 1}).seconds(["a"], beside=["a"]) == pytest.approx(1.0)  # in turns
    assert estimate(10**10, 0, rates, cores={"a": 2}).seconds(["a"], beside=["a"]) == pytest.approx(2 / 3)
    assert estimate(10**10, 0, rates, cores={"a": 1}).seconds(["a"], beside=["b"]) == pytest.approx(0.5)
    assert estimate(10**10, 0).seconds(["a"], rows=5) == pytest.approx(1.0)  # arithmetic hides behind reading
    assert estimate(10**10, 0).seconds(["a"], rows=8) == pytest.approx(8 * 10**10 * ASSUMED.constants.few_flop_s)


def test_fitted_constants_tell_more_than_the_start() -> None:
    own = replace(ASSUMED.constants, core_byte_s=1e-9)
    fitted = Rates(2e10, 3e10, NEAR, constants=own, fitted=True)
    assert estimate(10**10, 0, fitted).seconds(["a"]) == pytest.approx(10.0)
    told = Estimate(lambda shards, rows: Work(1, sums=1, sum_values=2048), fitted).told(["a", "a"])
    assert told == (
        "from weights read at 1.0 GB/s by each rank (fitted on this machine), 1.15 ms beside products and sums (fitted"
        " on this machine) and sums of 8 KiB in 4.0 us (measured)"
    )


def test_the_words_say_which_figures_were_measured() -> None:
    def told(hosts: list[str], rates: Rates = ASSUMED) -> str:
        return Estimate(lambda shards, rows: Work(1, layers=2, sums=1, sum_values=2048), rates).told(hosts)

    assert told(["a"]) == (
        "from weights read at 10.0 GB/s by each rank (assumed) and 1.27 ms beside products and sums (assumed)"
    )
    assert told(["a", "a"]) == (
        "from weights read at 10.0 GB/s by each rank (assumed), 1.37 ms beside products and sums (assumed) and sums of"
        " 8 KiB in 21.6 us (assumed)"
    )
    assert told(["a", "a"], Rates(12e9, 18e9, NEAR)) == (
        "from weights read at 9.0 GB/s by each rank (measured), 1.37 ms beside products and sums (assumed) and sums of"
        " 8 KiB in 4.0 us (measured)"
    )
    assert "in 217 us (assumed)" in told(["a", "a", "b"], Rates(near=NEAR))


def chosen(tmp_path: Path, rates: Rates, strategy: str) -> Layout:
    """Return where a model of 100 MB and 100 sums for each token lies on four ranks of a host."""
    facts = [RankFacts(rank, "h", rank, 4, [rank], 4, 1, 0) for rank in range(4)]
    config = read_config(write_checkpoint(tmp_path / "m"))
    cost = estimate(10**8, 100, rates)
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
    assert ("by each rank (measured)" in layout.why) == (rates is not ASSUMED)
    assert ("us (measured)" in layout.why) == (shards > 1 and rates.near is not None)
    assert ("us (assumed)" in layout.why) == (shards > 1 and rates.near is None)


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


def test_a_fit_of_this_machine_counts_on_cpus_only() -> None:
    fitted = Fit(replace(ASSUMED.constants, step_s=7.0))
    found = measure_rates(Single(), survey(Single()), None, fitted)
    assert (found.constants.step_s, found.fitted) == (7.0, True)
    on_gpu = [replace(survey(Single())[0], device="cuda:0")]
    assert measure_rates(Single(), on_gpu, None, fitted) == ASSUMED
    assert measure_rates(Single(), survey(Single()), None, None) == ASSUMED
    two = [replace(survey(Single())[0], rank=rank, host=host) for rank, host in enumerate("ab")]
    assert run_threads(2, lambda comm: measure_rates(comm, two, FAR, None).far) == [FAR] * 2
