"""Sampling follows the options, and chance depends on seed and position alone."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from ollampi.mpiruntime import sampler as sampler_module
from ollampi.mpiruntime.philox import chance, philox, uniforms
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.sampler import Logits, Pick, describe, sample

LOGITS = np.log(np.array([0.05, 0.4, 0.3, 0.15, 0.1], dtype=np.float32))


def one(logits: Logits, sampling: Sampling, tokens: list[int], seed: int = 1, position: int = 1) -> int | None:
    return sample(logits[None], [Pick(sampling, tokens, seed, position)])[0]


def drawn(sampling: Sampling, tokens: list[int] | None = None, count: int = 4000) -> np.ndarray:
    picks = [Pick(sampling, tokens or [], seed=7, position=p) for p in range(count)]
    return np.bincount(np.array(sample(np.tile(LOGITS, (count, 1)), picks)), minlength=5) / count


def test_zero_temperature_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert one(LOGITS, Sampling(temperature=0), [], 1, 1) == 1
    assert one(np.zeros(4, dtype=np.float32), Sampling(temperature=0), [], 1, 1) == 0


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
    assert one(LOGITS, greedy, [1], 0, 0) == 2
    assert one(LOGITS, Sampling(temperature=0, presence_penalty=5.0, repeat_last_n=1), [1, 0], 0, 0) == 1
    assert one(LOGITS, Sampling(temperature=0, presence_penalty=5.0, repeat_last_n=0), [1], 0, 0) == 1
    assert one(LOGITS, Sampling(temperature=0, frequency_penalty=0.2), [1, 1], 0, 0) == 2
    assert one(LOGITS, Sampling(temperature=0, repeat_penalty=2.0), [1], 0, 0) == 2
    assert one(LOGITS, Sampling(temperature=0, presence_penalty=5.0, repeat_last_n=-1), [1, *[0] * 99], 0, 0) == 2


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers that come with Random123, the authors' library
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_numbers(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    found = philox(np.array([counter], dtype=np.uint64).T, np.array([key], dtype=np.uint64).T)
    assert tuple(found[:, 0].tolist()) == words


def test_chance_is_keyed_by_seed_and_position() -> None:
    seeds, positions = [s for s in (-1, 0, 5, 2**63) for _ in range(50)], list(range(50)) * 4
    many = uniforms(seeds, positions)
    assert uniforms(seeds[7:8], positions[7:8])[0] == many[7]
    assert [chance(s, p) for s, p in zip(seeds, positions, strict=True)] == many.tolist()
    assert [chance(5, p) for p in (255, 256, 10**12)] == uniforms([5] * 3, [255, 256, 10**12]).tolist()
    assert len(set(many.tolist())) == 200
    assert ((many >= 0) & (many < 1)).all()
    assert abs(many.mean() - 0.5) < 0.06


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_told_and_harm_no_other_row(bad: float) -> None:
    logits = np.tile(LOGITS, (3, 1))
    logits[1, 2] = bad
    logits[2] *= 1e38  # finite, though the sum is not
    picks = [
        Pick(Sampling(temperature=0), [], 0, 0),
        Pick(Sampling(), [2], 0, 0),
        Pick(Sampling(temperature=0), [], 0, 0),
    ]
    assert sample(logits, picks) == [1, None, 1]


def test_a_bias_is_added_before_the_penalties() -> None:
    assert one(LOGITS, Sampling(temperature=0, logit_bias=[(3, 100.0)]), [], 0, 0) == 3
    assert one(LOGITS, Sampling(temperature=0, logit_bias=[(1, -100.0), (2, -100.0)]), [], 0, 0) == 3
    halved = Sampling(temperature=0, logit_bias=[(3, 100.0), (1, 51.0)], repeat_penalty=2.0)
    assert one(LOGITS, halved, [3], 0, 0) == 1
    for top_k in (0, 2):
        banned = Sampling(top_k=top_k, top_p=1.0, logit_bias=[(1, -1e30)])
        assert all(one(LOGITS, banned, [], seed, 0) != 1 for seed in range(50))


def test_penalties_that_leave_fp32_end_the_request_only() -> None:
    logits = np.tile(np.array([3e38, 0, 1, 2], dtype=np.float32), (2, 1))
    for top_k in (0, 2):
        wild = Sampling(temperature=0.8, top_k=top_k, repeat_penalty=1e-6)
        assert sample(logits, [Pick(wild, [0], 0, 0), Pick(Sampling(top_k=top_k), [0], 0, 0)]) == [None, 0]


def random_pick(rng: random.Random, vocab_size: int) -> Pick:
    sampling = Sampling(
        temperature=rng.choice([0.0, 0.3, 1.0, 2.0]),
        top_k=rng.choice([-1, 0, 1, 2, 40, 300, vocab_size, 10**6]),
        top_p=rng.choice([0.0, 0.5, 0.9, 1.0]),
        min_p=rng.choice([0.0, 0.1, 1.0]),
        typical_p=rng.choice([1.0, 1.0, 0.5]),
        repeat_penalty=rng.choice([1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, 0.5]),
        repeat_last_n=rng.choice([-1, 0, 3, 64]),
    )
    tokens = [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 80))]
    return Pick(sampling, tokens, rng.getrandbits(64), rng.randrange(5000))


@pytest.mark.parametrize("seed", range(30))
def test_company_changes_no_choice(seed: int) -> None:
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    vocab_size = rng.choice([5, 60, 1000])
    logits = noise.normal(size=(24, vocab_size)).astype(np.float32) * 3
    if seed % 3 == 0:
        logits = logits.round()  # many equals
    picks = [random_pick(rng, vocab_size) for _ in range(24)]
    assert sample(logits, picks) == [sample(logits[i : i + 1], [pick])[0] for i, pick in enumerate(picks)]


@pytest.mark.parametrize("seed", range(30))
def test_the_quick_path_chooses_as_the_general_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    logits = noise.normal(size=(24, 400)).astype(np.float32) * 3
    picks = [random_pick(rng, 400) for _ in range(24)]
    quick = sample(logits, picks)
    monkeypatch.setattr(sampler_module, "is_narrow", lambda *_: False)
    assert sample(logits, picks) == quick


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
        assert one(logits, sampling, [], seed=1, position=5) == 1


# ---- masks ----


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"top_k": 3}, {"top_k": 0}, {"top_k": 0, "typical_p": 0.6}, {"repeat_penalty": 1.5}],
    ids=str,
)
def test_a_mask_leaves_the_choice_among_its_tokens(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(40, 333)) * 3).astype(np.float32)
    kept = np.sort(rng.choice(333, 20, replace=False))
    bits = np.zeros(333, dtype=np.uint8)
    bits[kept] = 1
    mask = np.packbits(bits, bitorder="little").tobytes()
    few = np.ascontiguousarray(logits[:, kept])
    sampling = Sampling(**options)
    seen = [int(kept[2]), int(kept[5])] if "repeat_penalty" in options else []
    masked = sample(logits, [Pick(sampling, seen, 1, i, mask) for i in range(40)])
    alone = sample(few, [Pick(sampling, [2, 5] if seen else [], 1, i) for i in range(40)])
    assert masked == [int(kept[token]) for token in alone if token is not None]


def test_a_mask_touches_no_other_row_and_hides_no_broken_one() -> None:
    logits = np.array(
        [[1, 5, 2, 3], [1, 5, 2, 3], [1, np.nan, 2, 3], [1, np.inf, 2, 3], [1, -np.inf, 2, 3]], np.float32
    )
    before = logits.copy()
    greedy, mask = Sampling(temperature=0.0), bytes([0b1001])
    picks = [Pick(greedy, [], 0, 0), *(Pick(greedy, [], 0, 0, mask) for _ in range(4))]
    assert sample(logits, picks) == [1, 3, None, None, None]
    np.testing.assert_array_equal(logits, before)
