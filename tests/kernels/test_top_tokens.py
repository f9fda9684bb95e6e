"""The likeliest tokens are those of a full sort, by the native kernel and by NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from ollampi.kernels import native
from ollampi.kernels.top_tokens import top_tokens, top_tokens_numpy

BOTH = pytest.mark.parametrize("find", [top_tokens, top_tokens_numpy])
RANDOM = np.random.default_rng(0)


def sorted_row(row: np.ndarray, count: int) -> tuple[list[int], list[float]]:
    """Return what the first `count` places of a row hold, by sorting all of it."""
    tokens = [t for t in np.lexsort((np.arange(len(row)), -row)) if row[t] > -np.inf][:count]
    missing = count - len(tokens)
    return [int(t) for t in tokens] + [0] * missing, [float(row[t]) for t in tokens] + [-np.inf] * missing


def assert_sorted(find, scores: np.ndarray, count: int) -> None:
    """Compare with the full sort, row by row."""
    tokens, values, finite = find(scores, count)
    assert tokens.shape == values.shape == (len(scores), count)
    for row, at, value, is_finite in zip(scores, tokens, values, finite, strict=True):
        assert is_finite == np.isfinite(row).all()
        if not np.isnan(row).any() and not np.isposinf(row).any():
            assert (at.tolist(), value.tolist()) == sorted_row(row, count)


def test_the_native_kernels_are_there_where_they_were_built() -> None:
    built = list((native._FOLDER).glob("native.*so"))
    if not built:
        pytest.skip("the package was built without a compiler")
    assert native.library() is not None


@BOTH
@pytest.mark.parametrize("size", [1, 2, 31, 32, 63, 64, 65, 129, 1000, 4096])
def test_random_rows(find, size: int) -> None:
    for count in {1, min(2, size), min(40, size), min(256, size), size}:
        assert_sorted(find, RANDOM.standard_normal((5, size)).astype(np.float32), count)


@BOTH
def test_equal_scores_come_by_number_and_zeros_have_no_sign(find) -> None:
    few = RANDOM.integers(-2, 3, (8, 300)).astype(np.float32)
    few[few == 0] *= RANDOM.choice([-1.0, 1.0], (few == 0).sum()).astype(np.float32)
    for count in (1, 3, 40, 256, 300):
        assert_sorted(find, few, count)
        assert_sorted(find, np.zeros((2, 300), np.float32), count)


@BOTH
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 199])
def test_one_value_that_is_not_finite_marks_its_row_alone(find, bad: float, place: int) -> None:
    scores = RANDOM.standard_normal((3, 200)).astype(np.float32)
    scores[1, place] = bad
    assert find(scores, 10).finite.tolist() == [True, False, True]
    assert_sorted(find, scores, 10)


@BOTH
def test_few_or_no_finite_scores_and_the_ends_of_the_range(find) -> None:
    limits = np.finfo(np.float32)
    row = np.full((3, 100), -np.inf, np.float32)
    row[0, [7, 99]] = limits.min, limits.max
    row[1, [5, 64]] = limits.smallest_subnormal, -limits.smallest_subnormal
    for count in (1, 2, 5, 100):
        assert_sorted(find, row, count)


@BOTH
def test_rows_need_not_lie_side_by_side(find) -> None:
    scores = RANDOM.standard_normal((6, 500)).astype(np.float32)
    assert_sorted(find, scores[::2, ::-2], 12)


@BOTH
def test_no_rows(find) -> None:
    assert find(np.empty((0, 50), np.float32), 4).tokens.shape == (0, 4)
