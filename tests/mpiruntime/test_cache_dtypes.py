"""A cache in another type than the model's gives, on every world, what transformers computes from such a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import FAMILIES, PROMPT, reference, write_checkpoint
from support.worlds import generate, lead, load_message, logits_in_pieces, run_engine
from transformers import DynamicCache

from ollampi.kernels.cache_codec import decode, encode
from ollampi.mpiruntime.block_manager import BlockManager
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.scheduler import Scheduler
from ollampi.mpiruntime.thread_world import run_threads

SIZES = range(1, 9)
GREEDY = Sampling(temperature=0.0)
KEPT = ("bfloat16", "int8")


class RoundingCache(DynamicCache):
    """The cache of transformers, with every vector rounded as ours rounds it."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.kept = kept

    def update(self, k: torch.Tensor, v: torch.Tensor, *rest: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep k, v [B, K, T, d] rounded; return all so far."""
        rounded = [decode(*encode(x), x.dtype) if self.kept == "int8" else x.bfloat16().to(x.dtype) for x in (k, v)]
        found: tuple[torch.Tensor, torch.Tensor] = super().update(*rounded, *rest, **more)
        return found


@torch.no_grad()
def rounded_logits(folder: Path, tokens: list[int], kept: str) -> torch.Tensor:
    """Return transformers' logits [T, V] in fp32 with a cache that rounds."""
    logits: torch.Tensor = reference(folder)(
        torch.tensor([tokens]), past_key_values=RoundingCache(kept), use_cache=True
    ).logits[0]
    return logits


def rounded_greedy(folder: Path, tokens: list[int], count: int, kept: str) -> list[int]:
    """Return the `count` likeliest tokens one by one."""
    text = list(tokens)
    for _ in range(count):
        text.append(int(rounded_logits(folder, text, kept)[-1].argmax()))
    return text[len(tokens) :]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_checkpoint(root / name, **FAMILIES[name]) for name in ("llama3", "wide_heads")}


def compute(comm: Communicator, folder: Path, kept: str, dtype: str = "float32") -> torch.Tensor | None:
    """Return the logits of PROMPT in pieces on rank 0; collective."""

    def work(runner: Runner) -> torch.Tensor:
        runner.lead_load(load_message(folder, dtype, cache_dtype=kept))
        return logits_in_pieces(runner, PROMPT, [9, 1, 5, 1, 1])

    return lead(comm, work)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("family", ["llama3", "wide_heads"])
def test_logits_are_the_references_on_every_world(folders: dict[str, Path], family: str, kept: str) -> None:
    expected = rounded_logits(folders[family], PROMPT, kept)
    plain = rounded_logits(folders[family], PROMPT, "bfloat16" if kept == "int8" else "int8")
    for size in SIZES:
        found = run_threads(size, lambda c: compute(c, folders[family], kept))[0]
        assert found is not None
        error = (found - expected).abs()
        # sums differ in their last bits from world to world, and where that moves a key across the middle between two
        # codes, it moves by a whole one: rare, and small beside what the type costs
        assert error.mean() < 0.1 * (plain - expected).abs().mean(), f"{family} on {size} ranks"
        assert error.max() < 0.05


@pytest.mark.parametrize("kept", KEPT)
def test_greedy_text_is_the_references_on_every_world(folders: dict[str, Path], kept: str) -> None:
    folder = folders["llama3"]
    expected = rounded_greedy(folder, PROMPT, 12, kept)
    settings = EngineSettings(cache_tokens=64, block_size=4, max_step_tokens=7, cache_dtype=kept)
    messages = [generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=12)]
    for size in SIZES:
        recorder = run_threads(size, lambda c: run_engine(c, messages, settings))[0]
        assert recorder is not None
        assert recorder.tokens(1) == expected, f"{size} ranks"


@pytest.mark.parametrize("size", [1, 3])
def test_shared_beginnings_and_a_full_cache_change_no_text_in_8_bits(
    folders: dict[str, Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders["llama3"]
    shared, stepped_back = [], []
    plain_share, plain_preempt = BlockManager.share, Scheduler._preempt
    monkeypatch.setattr(BlockManager, "share", lambda *a: shared.append(plain_share(*a)) or shared[-1])
    monkeypatch.setattr(Scheduler, "_preempt", lambda *a: stepped_back.append(a) or plain_preempt(*a))
    prompts = [PROMPT, PROMPT, PROMPT[:9] + PROMPT[:3], PROMPT[:9], PROMPT]
    expected = [rounded_greedy(folder, prompt, 10, "int8") for prompt in prompts]
    messages = [generate(i, folder, p, sampling=GREEDY, max_tokens=10) for i, p in enumerate(prompts)]
    for max_running in (1, 8):  # one by one they share beginnings; together they do not fit and some step back
        settings = EngineSettings(
            cache_tokens=36, context_length=36, block_size=4, max_running=max_running, cache_dtype="int8"
        )
        recorder = run_threads(size, lambda c, settings=settings: run_engine(c, messages, settings))[0]
        assert recorder is not None
        assert [recorder.tokens(i) for i in range(len(prompts))] == expected
        assert any(shared) if max_running == 1 else stepped_back


def test_a_bf16_model_works_with_every_cache(folders: dict[str, Path]) -> None:
    expected = rounded_logits(folders["llama3"], PROMPT, "bfloat16")
    found = {}
    for kept in ("auto", "float32", *KEPT):
        logits = run_threads(2, lambda c, kept=kept: compute(c, folders["llama3"], kept, "bfloat16"))[0]
        assert logits is not None
        found[kept] = logits
        assert (logits - expected).abs().mean() / expected.abs().mean() < 0.03
    assert torch.equal(found["auto"], found["bfloat16"])
    assert (found["auto"] - found["float32"]).abs().mean() / expected.abs().mean() < 0.01  # products come in fp32
    assert not torch.equal(found["auto"], found["int8"])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_model_is_noticed_through_an_8_bit_cache(folders: dict[str, Path], tmp_path: Path, bad: float) -> None:
    model = reference(folders["llama3"])
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 5] = bad
    model.save_pretrained(tmp_path)
    settings = EngineSettings(cache_tokens=64, block_size=4, cache_dtype="int8")
    messages = [generate(1, tmp_path, PROMPT, sampling=GREEDY, max_tokens=4)]
    recorder = run_threads(2, lambda c: run_engine(c, messages, settings))[0]
    assert recorder is not None
    assert "not finite" in recorder.last(1)["message"]
