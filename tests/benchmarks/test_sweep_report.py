"""The report of a sweep follows from its records: examples whose figures are arithmetic."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from support.sweeps import record, repeat
from sweep_advice import LATENCY, MEMORY, THROUGHPUT, advice, choices
from sweep_figures import answer_s, by_chance, figure, first_s, of_record, speedups, split, token_s, tokens_per_s
from sweep_points import AXES, Load, Server
from sweep_records import Record
from sweep_report import benchstat, markdown, report, table_csv

LOAD = Load(2, 100, 11)
STEADY = [0.1, 0.1, 0.1]


def failed(server: Server, load: Load = LOAD) -> Record:
    return record(server, load, [], error="out of | memory")


def test_figures_are_of_the_middle_request_and_of_all_answers() -> None:
    one = replace(repeat(0.5, 0.1, LOAD, [1], [1]), first_s=[0.4, 0.6], token_s=[0.1, 0.3], wall_s=4.0)
    assert (first_s(one), token_s(one)) == (0.5, 0.2)
    assert answer_s(one) == pytest.approx((0.4 + 10 * 0.1 + 0.6 + 10 * 0.3) / 2)
    assert tokens_per_s(one) == 22 / 4.0


def test_a_figure_is_the_middle_with_the_least_and_the_most() -> None:
    found = of_record(record(Server(), LOAD, [0.3, 0.1, 0.2]), token_s)
    assert (found.value, found.least, found.most) == (0.2, 0.1, 0.3)


@pytest.mark.parametrize(
    ("one", "other", "tie"),
    [
        ([1.0, 1.1, 1.2], [1.2, 1.3, 1.4], True),  # the spreads touch
        ([1.0, 1.1, 1.15], [1.2, 1.3, 1.4], False),
        ([100.0] * 5, [103.5] * 5, True),  # repeats that agree are not certain beyond 2 %
        ([100.0] * 5, [105.0] * 5, False),
        ([100.0] * 2, [108.0] * 2, True),  # few repeats: 5 %
        ([100.0], [120.0], False),
        ([72.0, 72.2, 72.4, 72.4, 72.5, 91.5], [88.6, 92, 92.1, 92.5, 93, 96.1], False),  # one was disturbed
        ([72.0, 72.2, 91.5], [88.6, 92, 96.1], True),  # too few to know
    ],
)
def test_a_difference_below_the_noise_is_a_tie(one: list[float], other: list[float], tie: bool) -> None:
    assert figure(one).ties(figure(other)) is tie
    assert figure(other).ties(figure(one)) is tie


def test_ranks_are_counted_exactly() -> None:
    assert by_chance([1, 2, 3], [4, 5, 6]) == pytest.approx(1 / 20)
    assert by_chance([1, 2, 4], [3, 5, 6]) == pytest.approx(2 / 20)
    assert by_chance([4, 5, 6], [1, 2, 3]) == 1.0
    assert by_chance([1, 1], [1, 1]) == 1.0
    every = [3, 1, 4, 1, 5, 9, 2]
    halves = [
        sum(2 * (a > b) + (a == b) for a in chosen for b in rest(every, chosen)) for chosen in combinations(every, 3)
    ]
    low, high = [1, 3, 2], [4, 1, 5, 9]
    mine = sum(2 * (a > b) + (a == b) for a in low for b in high)
    assert by_chance(low, high) == pytest.approx(sum(u <= mine for u in halves) / len(halves))


def rest(every: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """Return what is left of some values without others."""
    left = list(every)
    for value in chosen:
        left.remove(value)
    return left


def test_time_splits_into_arithmetic_exchange_and_waiting() -> None:
    found = split(record(Server(4), LOAD, STEADY))  # exchange takes 1, 2, 3 and 4 s: 1 s each, and 1.5 s of waiting
    assert (found.compute, found.exchange, found.wait, found.other) == pytest.approx((3.0, 1.0, 1.5, 0.1))
    assert sum(found.shares) == pytest.approx(1.0)
    assert found.shares[0] == pytest.approx(3.0 / 5.6)


def test_replicas_do_not_wait_for_each_other() -> None:
    found = split(record(Server(2, 3), LOAD, STEADY))
    assert (found.compute, found.exchange, found.wait, found.other) == pytest.approx((3.0, 1.0, 0.5, 0.1 / 3))


def test_speed_ups_are_beside_the_fewest_shards_with_all_else_equal() -> None:
    records = [
        record(Server(4), LOAD, [0.05] * 3, first_s=0.05),
        record(Server(1), LOAD, STEADY, first_s=0.1),
        record(Server(2, quantize="q8"), LOAD, STEADY),  # nothing beside it
        failed(Server(8)),
    ]
    found = {each.point.server.shards: each for each in speedups(records)}
    assert sorted(found) == [1, 4]
    assert (found[1].speedup, found[1].efficiency) == (1.0, 1.0)
    assert (found[4].speedup, found[4].efficiency, found[4].fewest) == pytest.approx((2.0, 0.5, 1))


def chosen(records: list[Record]) -> dict[str, int]:
    (found,) = choices(records).values()
    return {goal: choice.shards for goal, choice in found.items()}


def test_the_best_number_of_shards_is_one_for_each_goal() -> None:
    one, many = Load(1, 100, 11), Load(16, 100, 11)
    records = [
        record(Server(1), one, [0.10, 0.11, 0.10]),
        record(Server(2), one, [0.06, 0.06, 0.07]),
        record(Server(4), one, [0.09, 0.09, 0.09]),
        record(Server(1), many, [0.20, 0.20, 0.20]),
        record(Server(2), many, [0.30, 0.30, 0.30]),
        record(Server(4), many, [0.40, 0.40, 0.40]),
    ]
    assert chosen(records) == {LATENCY: 2, THROUGHPUT: 1, MEMORY: 4}


def test_a_tie_goes_to_the_fewer_shards_and_is_said() -> None:
    records = [
        record(Server(4), LOAD, [0.098, 0.100, 0.104]),
        record(Server(2), LOAD, [0.100, 0.103, 0.105]),
        record(Server(1), LOAD, [0.200, 0.200, 0.200]),
    ]
    assert chosen(records)[LATENCY] == 2
    text = advice(records)
    assert "Best with quantize=auto: 2 shards for latency, 2 shards for throughput, 4 shards for memory." in text
    assert "a tie, so the fewer, with 4 shards: 1100.0 ms an answer (1080.0 to 1140.0)" in text
    assert "1.86 times as good as 1 shard: 2100.0 ms an answer (2100.0 to 2100.0)" in text  # 0.1 s and 10 tokens
    assert "2 shards are best for latency: 1130.0 ms an answer (1100.0 to 1150.0)" in text


def test_what_ties_with_a_loser_is_no_tie() -> None:
    records = [record(Server(n), LOAD, [seconds] * 5) for n, seconds in ((1, 0.108), (2, 0.104), (4, 0.1))]
    assert chosen(records)[LATENCY] == 2  # 2 ties with 4, which is the best; 1 with 2 alone


def test_throughput_is_taken_where_it_is_most() -> None:
    records = [
        record(Server(1), Load(1, 10, 11), STEADY),
        record(Server(1), Load(8, 10, 11), [0.9] * 3),  # falls behind with more requests
        record(Server(2), Load(1, 10, 11), [0.2] * 3),
        record(Server(2), Load(8, 10, 11), [0.4] * 3),
    ]
    (found,) = choices(records).values()
    assert found[THROUGHPUT].shards == 2
    assert found[THROUGHPUT].best.figure.value == pytest.approx(88 / 4.1)
    assert found[THROUGHPUT].candidates[0].figure.value == pytest.approx(11 / 1.1)


def test_lengths_count_by_their_geometric_mean() -> None:
    short, long = Load(1, 10, 11), Load(1, 10, 101)
    records = [record(Server(1), load, STEADY, first_s=0.1) for load in (short, long)]
    (found,) = choices(records).values()
    assert found[LATENCY].best.figure.value == pytest.approx((1.1 * 10.1) ** 0.5)


def test_each_quantisation_has_its_own_choice_and_other_settings_are_told() -> None:
    records = [record(Server(n, 1, 2, quantize), LOAD, [0.1 * n]) for n in (1, 2) for quantize in ("q8", "none")]
    text = advice(records)
    assert [line.partition(":")[0] for line in text.splitlines()] == [
        "Best with quantize=q8",
        "Best with quantize=none",
    ]
    assert "with threads=2" in text


def test_of_servers_that_tie_the_one_with_fewer_ranks_is_taken() -> None:
    records = [record(Server(1, replicas), LOAD, [0.1, 0.1, 0.1]) for replicas in (2, 1)]
    (found,) = choices(records).values()
    assert found[THROUGHPUT].best.server == Server(1, 1)


def test_a_server_that_lacks_a_load_is_not_compared() -> None:
    records = [
        record(Server(1), Load(1, 10, 11), STEADY),
        record(Server(1), Load(8, 10, 11), STEADY),
        record(Server(2), Load(1, 10, 11), [0.01] * 3),
        failed(Server(2), Load(8, 10, 11)),
    ]
    assert chosen(records) == {LATENCY: 1, THROUGHPUT: 1, MEMORY: 1}
    assert "no other number was measured" in advice(records)


def test_nothing_measured_is_said() -> None:
    made = report([failed(Server())])
    assert made.advice == "Nothing can be recommended: no point was measured."
    assert "out of \\| memory" in made.markdown
    assert "Nothing is measured yet." in report([]).markdown


def test_the_csv_has_a_row_for_each_point_failed_ones_too() -> None:
    records = [record(Server(2), LOAD, [0.1, 0.3, 0.2], shard_bytes=7), failed(Server(3))]
    good, bad = csv.DictReader(io.StringIO(table_csv(records)))
    assert good["shards"] == "2"
    assert [float(good[f"token_s{ending}"]) for ending in ("", "_least", "_most")] == [0.2, 0.1, 0.3]
    assert float(good["answer_s"]) == pytest.approx(2.1)
    assert (good["shard_bytes"], good["repeats"], good["error"], good["threads"]) == ("7", "3", "", "")
    assert (bad["shards"], bad["token_s"], bad["repeats"], bad["error"]) == ("3", "", "0", "out of | memory")


def test_the_markdown_has_figures_speed_ups_and_failures() -> None:
    records = [record(Server(1), LOAD, STEADY), record(Server(2), LOAD, [0.05] * 3), failed(Server(4))]
    text = markdown(records)
    assert "threads=null" in text  # as in a line for the sweep
    assert "None" not in text
    assert "| 1 | 100.00 (100.00 to 100.00) | 100.00 (100.00 to 100.00) | 20.0 (20.0 to 20.0) |" in text
    assert "| 2 | 1.83 | 0.92 |" in text  # 1.1 s by 0.6 s
    assert "| 4 | out of \\| memory |" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_benchstat_lines_are_of_gos_format() -> None:
    lines = benchstat([record(Server(2), LOAD, [0.1, 0.2], shard_bytes=7), failed(Server(3))]).splitlines()
    measured = [line for line in lines if line.startswith("Benchmark")]
    assert len(measured) == 2
    for line in measured:
        name, count, *pairs = line.split(" ")
        assert re.fullmatch(r"Benchmark[A-Z]\S+", name)
        assert int(count) == 2
        assert pairs[1::2] == ["ns/op", "ns/first", "ns/token", "tokens/s", "B/rank"]
        assert all(float(number) > 0 for number in pairs[::2])
    assert measured[0].split()[2] == "1100000000"
    assert re.findall(r"/(\w+)=", measured[0]) == ["model", *AXES]


def test_the_report_is_written_with_plots(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed: pip install 'ollampi[plots]'")
    records = [record(Server(n), Load(c, 10, 11), [0.1 * c / n] * 3) for n in (1, 2, 4) for c in (1, 8)]
    report([*records, failed(Server(8))]).write(tmp_path / "new")
    plots = {path.name for path in (tmp_path / "new").glob("*.png")}
    assert plots == {"sweep-speedup.png", "sweep-split.png", "sweep-throughput.png"}
    text = (tmp_path / "new" / "sweep.md").read_text()
    assert all((tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG") and f"({name})" in text for name in plots)


def test_without_matplotlib_the_rest_is_written_and_the_remedy_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep_report.has_matplotlib", lambda: False)
    lines = report([record(Server(), LOAD, STEADY)]).write(tmp_path)
    assert lines[1] == "no plots: matplotlib is not installed; pip install 'ollampi[plots]'"
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.csv", "sweep.md", "sweep.bench.txt"}
