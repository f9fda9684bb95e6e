"""What is drawn is what the definition says, by the native kernel and by NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ollampi.kernels.draw import draw, draw_numpy

BOTH = pytest.mark.parametrize("find", [draw, draw_numpy])
RANDOM = np.random.default_rng(0)


def shares(scores: list[float], top_k: float, top_p: float, min_p: float, temperature: float) -> list[float]:
    """Return the chance of each place, by the definition, one step after the other."""
    weights = [math.exp(score - scores[0]) for score in scores[: int(min(top_k, len(scores)))]]
    kept, before = [], 0.0
    for place, weight in enumerate(weights):
        if place and (before >= top_p * sum(weights) or weight < min_p):
            break
        kept.append(place)
        before += weight
    heated = [math.exp((scores[place] - scores[0]) / temperature) for place in kept]
    return [weight / sum(heated) for weight in heated]


def rows(num_rows: int, count: int, spread: float = 3.0) -> np.ndarray:
    """Return random scores, the largest of a row first."""
    return -np.sort(-RANDOM.standard_normal((num_rows, count)).astype(np.float32) * spread, axis=1)


OPTIONS = [
    (40, math.inf, 0.0, 1.0),
    (40, 0.9, 0.0, 0.8),
    (7, 0.5, 0.0, 2.0),
    (1, 0.9, 0.0, 1.0),
    (40, math.inf, 0.05, 1.5),
    (30, 0.95, 0.2, 0.3),
    (40, 1e-300, 0.0, 1.0),
    (40, math.inf, 1.0, 100.0),
    (40, math.inf, 0.0, 1e-300),
    (40, 0.999999, 1e-12, 1e6),
]


@BOTH
@pytest.mark.parametrize("options", OPTIONS)
def test_each_place_takes_its_share_of_the_chances(find, options: tuple[float, ...]) -> None:
    for scores in (rows(1, 40)[0], rows(1, 3)[0], rows(1, 40, 0.0)[0], rows(1, 256, 30.0)[0]):
        edges = np.cumsum(shares(scores.tolist(), *options))
        chances = np.concatenate([RANDOM.random(200), [0.0, 1 - 2**-53]])
        chances = chances[np.abs(chances[:, None] - edges).min(axis=1) > 1e-9]  # at a border rounding may decide
        asked = np.array([(*options, chance) for chance in chances])
        drawn = find(np.tile(scores, (len(chances), 1)), asked)
        assert drawn.tolist() == [int((edges <= chance).sum()) for chance in chances]


@BOTH
def test_rows_of_different_options_together(find) -> None:
    scores = rows(50, 64)
    asked = np.array([(*OPTIONS[i % len(OPTIONS)], RANDOM.random()) for i in range(50)])
    alone = [int(find(scores[i : i + 1], asked[i : i + 1])[0]) for i in range(50)]
    assert find(scores, asked).tolist() == alone


@BOTH
def test_what_has_no_weight_is_never_drawn(find) -> None:
    scores = np.array([[0.0, -np.inf, -np.inf], [5.0, 4.0, -2e38], [3e38, -3e38, -np.inf]], np.float32)
    for chance in (0.0, 0.5, 1 - 2**-53):
        drawn = find(scores, np.array([(3, math.inf, 0.0, 1.0, chance)] * 3))
        assert drawn[0] == drawn[2] == 0
        assert drawn[1] <= 1


@BOTH
def test_a_row_that_is_not_finite_harms_no_other(find) -> None:
    scores = rows(4, 8)
    asked = np.array([(8, 0.9, 0.0, 1.0, 0.7)] * 4)
    alone = find(scores, asked)
    scores[1], scores[2] = -np.inf, np.nan
    drawn = find(scores, asked)
    assert drawn[[0, 3]].tolist() == alone[[0, 3]].tolist()
    assert ((drawn >= 0) & (drawn < 8)).all()


def test_both_agree() -> None:
    scores = rows(5000, 40)
    asked = np.array([(*OPTIONS[i % len(OPTIONS)], RANDOM.random()) for i in range(5000)])
    assert np.array_equal(draw(scores, asked), draw_numpy(scores, asked))


@BOTH
def test_no_rows(find) -> None:
    assert find(np.empty((0, 5), np.float32), np.empty((0, 5))).shape == (0,)
