"""Deterministic embeddings: a mean of hidden states has the same bits in any company, pieces and world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import FAMILIES, PROMPT, reference_hidden, write_checkpoint
from support.worlds import embed, generate, run_engine

from ollampi.mpiruntime.arithmetic import Exact, Plain
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.thread_world import run_threads

LONG = (PROMPT * 7)[:111]
PROMPTS = [LONG, PROMPT, PROMPT[:1], LONG[::-1], LONG[:60]]


def test_sums_are_exact_whatever_the_magnitudes() -> None:
    """Hidden states [T, D] up to the largest that the norm's weight [D] lets through, and down to 2^-60 of them."""
    torch.manual_seed(3)
    count, width = 4096, 64
    weight = torch.tensor([1.0, -3.0, 1e-6, 2e5] * (width // 4))
    hidden = torch.randn(count, width).clamp(-1, 1) * 2.0 ** -torch.randint(0, 60, (count, width))
    hidden = hidden * 8 * weight
    hidden[7] = 8 * weight

    def sums(x: torch.Tensor) -> list[torch.Tensor]:
        return [x[torch.randperm(count)].cumsum(0)[-1] for _ in range(4)]

    first, *others = sums(Plain().summands(hidden, weight))
    assert not all(torch.equal(first, other) for other in others)  # so the test can see a difference
    exact, *others = sums(Exact(count).summands(hidden, weight))
    assert all(torch.equal(exact, other) for other in others)
    assert ((exact - first).abs() / (count * 8 * weight.abs())).max() < 2.0**-36


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mean", [True, False])
def test_embeddings_have_the_same_bits_in_any_company_pieces_and_world(tmp_path: Path, dtype: str, mean: bool) -> None:
    pooling = "mean" if mean else "last"
    folder = write_checkpoint(tmp_path / "m", **FAMILIES["biases"])
    shared = {"dtype": dtype, "cache_tokens": 256, "context_length": 128, "block_size": 4, "deterministic": True}
    wide, narrow = EngineSettings(**shared, max_step_tokens=512), EngineSettings(**shared, max_step_tokens=7)  # type: ignore[arg-type]
    alone = []
    for prompt in PROMPTS:
        recorder = run_threads(1, lambda c, p=prompt: run_engine(c, [embed(0, folder, [p], pooling=pooling)], wide))[0]  # type: ignore[misc]
        assert recorder is not None
        alone.append(recorder.embeddings(0)[0])
    messages = [
        generate(1, folder, PROMPT, max_tokens=20),
        embed(2, folder, PROMPTS, pooling=pooling),
    ]
    messages.append(embed(3, folder, PROMPTS[::-1], pooling=pooling))
    for size, settings in ((1, narrow), (2, wide), (3, narrow), (4, wide)):
        recorder = run_threads(size, lambda c, s=settings: run_engine(c, messages, s))[0]  # type: ignore[misc]
        assert recorder is not None
        for place, expected in enumerate(alone):
            for number, at in ((2, place), (3, len(PROMPTS) - 1 - place)):
                found = recorder.embeddings(number)[at].numpy()
                assert np.array_equal(found.view(np.int32), expected.numpy().view(np.int32)), (size, place)
    states = reference_hidden(folder, LONG)
    expected = states.mean(0) if mean else states[-1]
    assert (alone[0] - expected).abs().max() <= (1e-4 if dtype == "float32" else 0.05)
