"""What benchmarks/cost_model.py and cost_figure.py make of points; nothing is measured here."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cost_figure import LINKS as PAPER_LINKS
from cost_figure import NODES, table
from cost_figure import SHAPES as PAPER_SHAPES
from cost_model import LINKS, SHAPES, UNSEEN, Seen, choices, middle, summary
from cost_model import table as points_table

from ollampi.mpiruntime.cost_fit import Fit, Point
from ollampi.mpiruntime.cost_model import Constants, Site, Work

DOCS = Path(__file__).resolve().parents[2] / "docs"
STEPS = Constants(**{**dict.fromkeys(Constants.__dataclass_fields__, 0.0), "core_byte_s": 1.0, "follow_s": 10.0})


def seen(shape: str, shards: int, link: str, seconds: float = 1.0) -> Seen:
    return Seen(shape, shards, link, "decode", 1, seconds, 2, 4)


def test_each_shape_number_of_shards_and_link_is_in_both_parts() -> None:
    every = [
        seen(*each) for each in itertools.product(SHAPES, (1, 2, 3, 4), LINKS) if each[1] > 1 or each[2] == "shared"
    ]
    held = [each for each in every if each.held]
    known = [each for each in every if not each.held]
    assert {each.shape for each in held} == set(SHAPES)
    assert {each.shape for each in known} == set(SHAPES) - {UNSEEN}
    for part in (held, known):
        assert {each.shards for each in part} == {1, 2, 3, 4}
        assert {each.link for each in part} == set(LINKS)
    assert len(held) == len(every) * (1 / 4 + 3 / 4 * 1 / 3)


def test_the_median_of_rounds_counts() -> None:
    rounds = [seen("deep", 2, "slow", 3.0), seen("deep", 1, "shared", 1.0), seen("deep", 2, "slow", 1.0)]
    assert middle([*rounds, seen("deep", 2, "slow", 2.0)]) == [seen("deep", 2, "slow", 2.0), rounds[1]]


@pytest.mark.parametrize(
    ("given", "site", "link"),
    [
        (seen("deep", 1, "shared"), Site(busy=1, cores=2), ""),
        (seen("deep", 3, "shared"), Site(local=3, busy=3, cores=2), ""),
        (seen("deep", 3, "slow"), Site(hosts=3, busy=3, cores=2), "slow"),
    ],
)
def test_hosts_of_the_laboratory_share_cores(given: Seen, site: Site, link: str) -> None:
    @dataclass
    class Works:
        few: float = 0

        def decode(self, shards: int, rows: int, position: int) -> Work:
            return Work(shards, tokens=rows, native=rows <= self.few)

    assert given.point({"deep": Works()}) == Point(Work(given.shards), site, 1.0, link)  # type: ignore[dict-item]


def test_predictions_are_summed_up() -> None:
    times = {1: 100.0, 2: 62.0, 4: 30.0}  # predicted: 100, 60, 35
    every = [seen("deep", shards, "slow" if shards > 1 else "shared", s) for shards, s in times.items()]
    points = [Point(Work(100 / n), Site(hosts=n), s, "slow" * (n > 1)) for n, s in times.items()]
    found = Fit(STEPS, {"slow": {"far_trip_s": 0.0, "far_byte_s": 0.0}})
    assert summary("all", every, points, found) == (
        "all: 3 points, median error 3.2%, 2 within 15 %, worst 16.7% (slow, 4 shards, deep, 1 answers)"
    )
    assert summary("none", [], [], found) == "none: no points"
    assert "| slow | 2 | deep | decode of 1 | 62000.00 | 60000.00 | 0.97 |" in points_table(every, points, found)
    assert choices(every, points, found).endswith("in 1 of 1 sweeps")
    slower = [Point(p.work, p.site, s, p.link) for p, s in zip(points, (100.0, 62.0, 70.0), strict=True)]
    assert choices(every, slower, found).endswith("in 0 of 1 sweeps")


def test_the_table_on_paper_is_that_of_the_script() -> None:
    text = (DOCS / "cost-model.md").read_text()
    for row in table(["8B"]).splitlines():
        assert row in text, "run benchmarks/cost_figure.py"


def test_the_figure_has_a_curve_for_each_model_link_and_panel() -> None:
    drawn = ElementTree.parse(DOCS / "cost-model.svg").getroot()
    curves = [each.get("points", "").split() for each in drawn.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in curves] == [len(NODES)] * 2 * len(PAPER_LINKS) * len(PAPER_SHAPES)
