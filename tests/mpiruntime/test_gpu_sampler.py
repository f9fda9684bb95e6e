"""What is chosen on a GPU is what the CPU chooses, token by token; its operations run on the CPU here."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from ollampi.kernels.top_tokens import top_tokens_numpy
from ollampi.mpiruntime.gpu_sampler import sample_on_device, sample_rows, top_on_device
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.sampler import Pick, sample


def random_pick(rng: random.Random, vocab_size: int) -> Pick:
    sampling = Sampling(
        temperature=rng.choice([0.0, 0.3, 1.0, 2.0]),
        top_k=rng.choice([-1, 0, 1, 2, 40, 256, 300, 10**6]),
        top_p=rng.choice([0.0, 0.5, 0.9, 1.0]),
        min_p=rng.choice([0.0, 0.1, 1.0]),
        typical_p=rng.choice([1.0, 1.0, 0.5]),
        repeat_penalty=rng.choice([1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, 0.5]),
        repeat_last_n=rng.choice([-1, 0, 3, 64]),
        logit_bias=rng.choice([[], [], [(1, 2.5), (3, -1.0)]]),
    )
    tokens = [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 80))]
    mask = bytes([0b10110101]) * (-(-vocab_size // 8)) if rng.random() < 0.2 else None
    return Pick(sampling, tokens, rng.getrandbits(64), rng.randrange(5000), mask)


@pytest.mark.parametrize("seed", range(40))
def test_the_same_tokens_for_the_same_seeds(seed: int) -> None:
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    vocab_size = rng.choice([5, 60, 1000])
    logits = noise.normal(size=(24, vocab_size)).astype(np.float32) * 3
    if seed % 3 == 0:
        logits = logits.round()  # many equals, and zeros of both signs
    if seed % 5 == 0:
        logits[3, 2], logits[4, 1], logits[5, 0] = np.nan, np.inf, -np.inf
    picks = [random_pick(rng, vocab_size) for _ in range(24)]
    wanted = sample(logits, picks)
    assert sample_on_device(torch.from_numpy(logits), picks) == wanted
    assert sample_rows(torch.from_numpy(logits), picks) == wanted


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_likeliest_are_those_of_numpy(count: int) -> None:
    for seed in range(5):
        scores = (np.random.default_rng(seed).normal(size=(6, 333)) * 2).astype(np.float32).round(seed % 3)
        found, wanted = top_on_device(torch.from_numpy(scores), count), top_tokens_numpy(scores, count)
        for own, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(own, other)
