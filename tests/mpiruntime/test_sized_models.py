"""Models get caches from the memory that is free when they are loaded, less what others may still take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, write_checkpoint
from support.worlds import generate, lead, loaded, run_engine

from ollampi.mpiruntime import placement
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.memory import RUNTIME_BYTES, cache_bytes
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.step import Chunk, Step
from ollampi.mpiruntime.thread_world import run_threads

SIZES = (1, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "m")


def fixed(folder: Path, size: int) -> int:
    """Return the bytes of weights and buffers on all ranks."""
    config = read_config(folder)
    return sum(shard_size(config, Shard(r, size), "float32").total_bytes + RUNTIME_BYTES for r in range(size))


def kept(folder: Path, size: int, tokens: int, dtype: str = "float32") -> int:
    """Return the bytes of the cache on all ranks."""
    config = read_config(folder)
    return sum(cache_bytes(config, Shard(r, size), tokens, dtype) for r in range(size))


def settings_of(**more: Any) -> EngineSettings:
    """Return settings with small contexts."""
    return EngineSettings(context_length=32, block_size=4, **more)


def with_models(
    size: int, settings: EngineSettings, free: Callable[[], int], work: Callable[[Models, Runner], Any]
) -> Any:
    """Return what `work` returns on a world whose host has `free` bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "free_memory", free)
        return run_threads(size, lambda c: lead(c, lambda runner: work(Models(runner, settings), runner)))[0]


def tokens_of(hosted: HostedModel) -> int:
    """Return the cache's tokens, as the model, its scheduler and the ranks' bytes have it."""
    blocks = hosted.scheduler.blocks
    assert hosted.cache_tokens == blocks.num_blocks * blocks.block_size
    dtype = hosted.cache_dtype
    assert sum(r.cache_bytes for r in hosted.reports) == kept(
        Path(hosted.ref.path), len(hosted.reports), hosted.cache_tokens, dtype
    )
    return hosted.cache_tokens


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_a_cache_is_the_given_part_of_what_the_weights_leave(
    folder: Path, size: int, dtype: str, fraction: float
) -> None:
    settings = settings_of(cache_dtype=dtype, cache_fraction=fraction)
    free = fixed(folder, size) + kept(folder, size, 1000, dtype)
    tokens = with_models(size, settings, lambda: free, lambda m, _: tokens_of(loaded(m, ModelRef("m", str(folder)))))
    assert tokens == int(1000 * fraction)


@pytest.mark.parametrize("size", SIZES)
def test_a_cache_has_no_more_than_all_running_requests_can_use(folder: Path, size: int) -> None:
    settings = settings_of(max_running=5)
    ref = ModelRef("m", str(folder))
    assert with_models(size, settings, lambda: 1 << 40, lambda m, _: tokens_of(loaded(m, ref))) == 5 * 32
    assert (
        with_models(size, settings, lambda: 1 << 40, lambda m, _: tokens_of(loaded(m, ref, 50))) == 5 * 52
    )  # whole blocks


@pytest.mark.parametrize("size", SIZES)
def test_a_number_is_that_number_or_a_refusal(folder: Path, size: int) -> None:
    settings = settings_of(cache_tokens=1000)
    ref = ModelRef("m", str(folder))
    enough = fixed(folder, size) + kept(folder, size, 1000)
    assert with_models(size, settings, lambda: enough, lambda m, _: tokens_of(loaded(m, ref))) == 1000
    with pytest.raises(ModelError, match=r"and 1000 cache tokens needs .* smaller engine\.cache_tokens"):
        with_models(size, settings, lambda: enough - 1, lambda m, _: loaded(m, ref))


@pytest.mark.parametrize("size", SIZES)
def test_a_model_needs_memory_for_one_context(folder: Path, size: int) -> None:
    settings = settings_of()
    ref = ModelRef("m", str(folder))
    enough = fixed(folder, size) + kept(folder, size, 32)
    assert with_models(size, settings, lambda: enough, lambda m, _: tokens_of(loaded(m, ref))) == 32
    with pytest.raises(ModelError, match=r"and 32 cache tokens needs .*engine\.context_length"):
        with_models(size, settings, lambda: enough - 1, lambda m, _: loaded(m, ref))


@pytest.mark.parametrize("size", SIZES)
def test_what_a_cache_has_not_taken_yet_is_not_free_for_another_model(folder: Path, size: int) -> None:
    settings = settings_of()
    free = fixed(folder, size) + kept(folder, size, 4000)

    def work(models: Models, runner: Runner) -> list[int]:
        first = loaded(models, ModelRef("a", str(folder)))
        second = loaded(models, ModelRef("b", str(folder)))  # the host tells the same: no memory was taken by the first
        step = Step(first.number, [Chunk([1, 2, 3, 4], 0, [399], 1)])  # the last of 1600 slots
        runner.send(step)
        runner.step(step)
        return [tokens_of(m) for m in (first, second, loaded(models, ModelRef("c", str(folder))))]

    first, second, third = with_models(size, settings, lambda: free, work)
    assert (first, second) == (2000, 1000)
    assert third == (4000 - 400 - 1000) // 2  # of the first one 400 slots are still to be taken, of the second all


@pytest.mark.parametrize("size", SIZES)
def test_a_model_and_the_one_that_drafts_for_it_are_sized_together(folder: Path, tmp_path: Path, size: int) -> None:
    wide = write_checkpoint(tmp_path, num_hidden_layers=3, intermediate_size=352)
    free = fixed(folder, size) + fixed(wide, size) + kept(folder, size, 1000) + kept(wide, size, 1000)

    def work(models: Models, _: Runner) -> list[int]:
        start = ModelRef("a", str(folder))
        tokens = [tokens_of(models.pin(start, ModelRef("draft", str(wide))))]
        return [*tokens, tokens_of(loaded(models, start, 64))]

    first, second = with_models(size, settings_of(), lambda: free, work)
    assert first == 500
    weights = fixed(folder, size) + fixed(wide, size) - 2 * size * RUNTIME_BYTES  # which the first ones give back
    part = weights / kept(folder, size, 1000) * 1000
    assert 500 < second <= 500 + part


@pytest.mark.parametrize("size", SIZES)
def test_a_model_that_leaves_gives_back_only_what_it_took(folder: Path, size: int) -> None:
    settings = settings_of(max_loaded_models=1)
    free = fixed(folder, size) + kept(folder, size, 1000)
    weights = fixed(folder, size) - size * RUNTIME_BYTES

    def work(models: Models, _: Runner) -> list[int]:
        return [tokens_of(loaded(models, ModelRef(name, str(folder)))) for name in "ab"]

    first, second = with_models(size, settings, lambda: free, work)
    assert first == 500
    assert kept(folder, size, second) <= (kept(folder, size, 1000) + weights) / 2 < kept(folder, size, second + 4)


def test_requests_are_answered_from_a_cache_that_was_sized(folder: Path) -> None:
    messages = [generate(1, folder, PROMPT, max_tokens=8), {"op": "loaded", "id": 2, "behind": [1]}]
    recorder = run_threads(2, lambda c: run_engine(c, messages, EngineSettings(block_size=4)))[0]
    assert recorder is not None
    assert len(recorder.tokens(1)) == 8
    (model,) = recorder.last(2)["models"]
    config = read_config(folder)
    weights = sum(shard_size(config, Shard(r, 2), "float32").total_bytes for r in range(2))
    assert model["size_bytes"] == weights + kept(folder, 2, 256 * 256)  # max_running contexts of this small model
