"""Sampling follows the options, and chance depends on seed and position alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ollampi.mpiruntime.errors import RequestError
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.sampler import describe, sample, uniform

LOGITS = np.log(np.array([0.05, 0.4, 0.3, 0.15, 0.1], dtype=np.float32))


def drawn(sampling: Sampling, tokens: list[int] | None = None, count: int = 4000) -> np.ndarray:
    picks = [sample(LOGITS, sampling, tokens or [], seed=7, position=p) for p in range(count)]
    return np.bincount(picks, minlength=5) / count


def test_zero_temperature_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert sample(LOGITS, Sampling(temperature=0), [], 1, 1) == 1
    assert sample(np.zeros(4, dtype=np.float32), Sampling(temperature=0), [], 1, 1) == 0


def test_plain_sampling_has_the_given_probabilities() -> None:
    found = drawn(Sampling(temperature=1, top_k=0, top_p=1))
    assert np.abs(found - np.exp(LOGITS)).max() < 0.03


def test_temperature_sharpens() -> None:
    expected = np.exp(LOGITS * 2) / np.exp(LOGITS * 2).sum()
    assert np.abs(drawn(Sampling(temperature=0.5, top_k=0, top_p=1)) - expected).max() < 0.03


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2, "top_p": 1.0}, {1, 2}),
        ({"top_k": 1}, {1}),
        ({"top_k": 0, "top_p": 0.69}, {1, 2}),
        ({"top_k": 0, "top_p": 0.0}, {1}),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.3}, {1, 2, 3}),
        ({"top_k": 0, "top_p": 1.0, "min_p": 1.0}, {1}),
        ({"top_k": 99, "top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 0, "top_p": 1.0, "typical_p": 0.2}, {2}),
    ],
)
def test_filters_keep_exactly_the_right_tokens(options: dict[str, float], kept: set[int]) -> None:
    found = drawn(Sampling(temperature=1, **options))  # type: ignore[arg-type]
    assert set(np.flatnonzero(found)) == kept


def test_penalties_act_on_the_window_only() -> None:
    greedy = Sampling(temperature=0, presence_penalty=5.0)
    assert sample(LOGITS, greedy, [1], 0, 0) == 2
    assert sample(LOGITS, Sampling(temperature=0, presence_penalty=5.0, repeat_last_n=1), [1, 0], 0, 0) == 1
    assert sample(LOGITS, Sampling(temperature=0, presence_penalty=5.0, repeat_last_n=0), [1], 0, 0) == 1
    assert sample(LOGITS, Sampling(temperature=0, frequency_penalty=0.2), [1, 1], 0, 0) == 2
    assert sample(LOGITS, Sampling(temperature=0, repeat_penalty=2.0), [1], 0, 0) == 2
    assert sample(LOGITS, Sampling(temperature=0, presence_penalty=5.0, repeat_last_n=-1), [1, *[0] * 99], 0, 0) == 2


def test_chance_is_keyed_by_seed_and_position() -> None:
    assert uniform(5, 9) == uniform(5, 9)
    many = {uniform(seed, position) for seed in (-1, 0, 5, 2**63) for position in range(50)}
    assert len(many) == 200
    assert all(0 <= u < 1 for u in many)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_end_the_request(bad: float) -> None:
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(RequestError, match="not finite"):
        sample(logits, Sampling(temperature=0), [], 0, 0)


def test_logprobs_are_those_of_the_plain_logits() -> None:
    found = describe(LOGITS + 3, 2, 2)
    assert found.token == 2
    assert math.isclose(found.logprob, math.log(0.3), abs_tol=1e-6)
    assert [t for t, _ in found.top] == [1, 2]
    assert math.isclose(found.top[0][1], math.log(0.4), abs_tol=1e-6)


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy_and_never_breaks(temperature: float) -> None:
    logits = np.array([3.0, 3.5, -1e30, 3.4], dtype=np.float32)
    for top_k in (0, 3):
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=1.0)
        assert sample(logits, sampling, [], seed=1, position=5) == 1
