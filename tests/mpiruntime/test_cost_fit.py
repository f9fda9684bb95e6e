"""A fit finds the constants that steps were made of, with noise, and is kept for this machine."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ollampi.mpiruntime.cost_fit import FILE, Fit, Point, fit, nnls, read_fit, write_fit
from ollampi.mpiruntime.cost_model import ASSUMED, Constants, Site, Work, step_s

TRUE = Constants(
    step_s=0.6e-3,
    row_s=4e-5,
    layer_s=7e-5,
    value_s=8e-9,
    core_byte_s=6e-11,
    host_byte_s=2.5e-11,
    restore_row_s=2e-7,
    few_flop_s=1.5e-11,
    many_flop_s=6e-12,
    follow_s=2e-4,
    near_trip_s=6e-6,
    near_byte_s=2e-10,
    switch_s=4e-5,
)
LINKS = {
    "fast": {"far_trip_s": 4e-5, "far_byte_s": 1e-9},
    "slow": {"far_trip_s": 3e-4, "far_byte_s": 8e-9},
}
SHAPES = [(256, 4, 1e7), (1024, 8, 1e8), (2048, 16, 6e8), (512, 24, 5e7)]  # width, layers, weights


def works(shards: int) -> list[Work]:
    """Return steps of some shapes: of one token, of eight answers, of a prompt."""
    return [
        Work(
            2 * weights / shards,
            2 * weights * tokens / shards,
            tokens,
            rows,
            layers,
            2 * layers + 1,
            width,
            16e3 * rows,
            native=tokens <= 8,
            weight_rows=weights / width / shards,
        )
        for width, layers, weights in SHAPES
        for tokens, rows in ((1, 1), (8, 8), (256, 1))
    ]


def points(noise: float = 0.0) -> list[Point]:
    """Return what steps on a machine of four cores take, each off by as much as `noise`."""
    draw, known = random.Random(3), Fit(TRUE, LINKS)
    sites = [(Site(local=n, busy=n, cores=4), "") for n in (1, 2, 3, 4, 8)]
    sites += [(Site(hosts=n, cores=4), link) for n, link in itertools.product((2, 3, 4), LINKS)]
    sites += [(Site(hosts=2, local=2, busy=8, cores=4), "fast"), (Site(hosts=4, busy=8, cores=4), "slow")]
    exact = [Point(work, site, 1.0, link) for site, link in sites for work in works(site.local * site.hosts)]
    return [replace(point, seconds=known.seconds(point) * draw.uniform(1 - noise, 1 + noise)) for point in exact]


def test_a_fit_finds_the_constants() -> None:
    found = fit(points())
    for name, value in vars(TRUE).items():
        if not name.startswith(("far_", "code_")):
            assert getattr(found.constants, name) == pytest.approx(value, rel=0.03), name
    for link, values in LINKS.items():
        assert found.links[link] == pytest.approx(values, rel=0.1)
    assert all(abs(found.seconds(point) / point.seconds - 1) < 0.01 for point in points())


def test_a_fit_with_noise_predicts_what_it_has_not_seen() -> None:
    held = [point for i, point in enumerate(points()) if i % 5 == 0]
    found = fit([point for i, point in enumerate(points(noise=0.05)) if i % 5])
    assert max(abs(found.seconds(point) / point.seconds - 1) for point in held) < 0.1
    assert found.constants.core_byte_s == pytest.approx(TRUE.core_byte_s, rel=0.1)
    assert found.constants.many_flop_s == pytest.approx(TRUE.many_flop_s, rel=0.1)


def test_what_no_point_tells_of_stays() -> None:
    alone = [Point(work, Site(cores=4), step_s(work, Site(cores=4), TRUE)) for work in works(1)]
    found = fit(alone)
    assert found.constants.near_trip_s == pytest.approx(ASSUMED.near_trip_s)
    assert found.constants.far_byte_s == pytest.approx(ASSUMED.far_byte_s)
    assert found.links == {}
    assert all(found.seconds(point) == pytest.approx(point.seconds, rel=0.01) for point in alone)


def test_least_squares_without_negative_numbers() -> None:
    assert nnls(np.eye(3), np.array([1.0, -2.0, 3.0])) == pytest.approx([1.0, 0.0, 3.0])
    draw = np.random.default_rng(0)
    for _ in range(20):
        a, b = draw.normal(size=(12, 5)), draw.normal(size=12)
        x = nnls(a, b)
        gain = a.T @ (b - a @ x)  # of Karush, Kuhn and Tucker: none that is 0 would gain, and no other
        assert (x >= 0).all()
        assert (gain <= 1e-8).all()
        assert gain[x > 0] == pytest.approx(0, abs=1e-8)


def test_a_fit_is_kept_for_its_machine(tmp_path: Path) -> None:
    found = Fit(TRUE, LINKS)
    assert read_fit(tmp_path, "this") is None
    assert read_fit(None, "this") is None
    write_fit(tmp_path / "new", "this", found)
    write_fit(tmp_path / "new", "that", Fit(ASSUMED))
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILE]
    assert read_fit(tmp_path / "new", "this") == found
    assert read_fit(tmp_path / "new", "that") == Fit(ASSUMED)
    assert read_fit(tmp_path / "new", "other") is None


GOOD = {"constants": vars(TRUE), "links": LINKS}


@pytest.mark.parametrize(
    "entry",
    [
        None,
        3,
        [],
        {},
        {"constants": {}, "links": {}},
        {"constants": vars(TRUE)},
        GOOD | {"links": {"fast": {}}},
        GOOD | {"constants": {**vars(TRUE), "step_s": -1.0}},
        GOOD | {"constants": {**vars(TRUE), "step_s": "1"}},
        GOOD | {"constants": {**vars(TRUE), "more_s": 1.0}},
        GOOD | {"constants": {**vars(TRUE), "step_s": float("nan")}},
    ],
)
def test_what_is_no_fit_counts_as_none(tmp_path: Path, entry: object) -> None:
    (tmp_path / FILE).write_text(json.dumps({"this": entry, "that": GOOD}))
    assert read_fit(tmp_path, "this") is None
    assert read_fit(tmp_path, "that") == Fit(TRUE, LINKS)
    write_fit(tmp_path, "other", Fit(TRUE))
    assert sorted(json.loads((tmp_path / FILE).read_text())) == ["other", "that"]
