"""Layers are streamed where the memory is too small for them, and only where that was not ruled out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, reference_greedy, write_checkpoint
from support.devices import as_gpu
from support.worlds import generate, lead, run_engine

from ollampi.mpiruntime import placement
from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.memory import RUNTIME_BYTES, cache_bytes
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.request import ModelRef, Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.thread_world import run_threads

SIZES = pytest.mark.parametrize("size", [1, 3])
LAYERS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m") / "m", num_hidden_layers=LAYERS)


def needed(folder: Path, size: int, num_streamed: int, prefetch_factor: int = 1) -> int:
    """Return what a host of all ranks must have for a context of 32 tokens."""
    config = read_config(folder)
    ranks = [Shard(rank, size) for rank in range(size)]
    weights = sum(shard_size(config, r, "float32").held_bytes(num_streamed, prefetch_factor) for r in ranks)
    return weights + size * RUNTIME_BYTES + sum(cache_bytes(config, r, 32, "float32") for r in ranks)


def load(
    folder: Path, size: int, free: int, draft: Path | None = None, **more: Any
) -> tuple[int, list[int], list[int]]:
    """Return the layers streamed, the bytes that ranks hold, and those that they read in a step, with `free` bytes."""
    settings = EngineSettings(context_length=32, block_size=4, **{"prefetch_factor": 1, **more})

    def work(runner: Runner) -> HostedModel:
        models = Models(runner, settings)
        hosted = models.pin(ModelRef("m", str(folder)), draft and ModelRef("d", str(draft)))
        models.unload_when_idle("m")
        return hosted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "free_memory", lambda: free)
        hosted = run_threads(size, lambda c: lead(c, work))[0]
    assert hosted is not None
    assert hosted.draft is None or all(r.step_bytes == 0 for r in hosted.draft.reports)
    return hosted.num_streamed, [r.weight_bytes for r in hosted.reports], [r.step_bytes for r in hosted.reports]


@SIZES
def test_as_few_layers_as_the_memory_demands(folder: Path, tmp_path: Path, size: int) -> None:
    cache = str(tmp_path)
    assert load(folder, size, needed(folder, size, 0), shard_cache=cache)[0] == 0
    for streamed in (3, 5, LAYERS):
        count, held, read = load(folder, size, needed(folder, size, streamed), shard_cache=cache)
        assert count == streamed
        assert sum(held) == needed(folder, size, streamed) - needed(folder, size, 0) + sum(
            shard_size(read_config(folder), Shard(r, size), "float32").total_bytes for r in range(size)
        )
        assert all(bytes_read > 0 for bytes_read in read)
    count, held, read = load(folder, size, 1 << 40, shard_cache=cache, stream="always")
    assert count == LAYERS
    assert all(read)


@SIZES
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stream": "never"}, r"; or use stream=auto cache=FOLDER, which reads layers from a file in FOLDER in every"),
        ({"shard_cache": None}, r"; or use stream=auto cache=FOLDER, .* in the place of cache=null; FITS"),
        ({"load": "scatter"}, r"; or use stream=auto cache=FOLDER, .* in the place of load=scatter; FITS"),
        (
            {"free": 1000},
            r"though layers are streamed but 0.977 KiB are .*, or a smaller exchange.prefetch_factor; nor would it in",
        ),
        ({"stream": "always", "shard_cache": None}, "stream=always cannot be had with cache=null; use stream=always c"),
        ({"stream": "always", "load": "scatter"}, "stream=always cannot be had with load=scatter; use stream=always"),
    ],
)
def test_the_refusal_names_the_remedy(
    folder: Path, tmp_path: Path, size: int, settings: dict[str, Any], message: str
) -> None:
    fits = "it would fit with quantize=q8$" if size == 1 else "nor would it in fewer bits"  # 3 ranks cut within groups
    given = {"shard_cache": str(tmp_path), "free": needed(folder, size, LAYERS), **settings}
    with pytest.raises(ModelError, match=message.replace("FITS", fits)):
        load(folder, size, **given)
    assert list(tmp_path.iterdir()) == []


def test_a_draft_model_stays_in_memory(folder: Path, tmp_path: Path) -> None:
    draft = write_checkpoint(tmp_path / "d", seed=4, num_hidden_layers=1)
    assert load(folder, 2, 1 << 40, draft, stream="always", shard_cache=str(tmp_path / "c"))[0] == LAYERS
    free = needed(folder, 2, 3) + needed(draft, 2, 0)
    assert load(folder, 2, free, draft, shard_cache=str(tmp_path / "c"))[0] == 3


@SIZES
def test_a_streamed_model_answers_like_the_one_in_memory(folder: Path, tmp_path: Path, size: int) -> None:
    settings = EngineSettings(context_length=64, block_size=4, stream="always", shard_cache=str(tmp_path))
    greedy: dict[str, Any] = {"max_tokens": 8, "sampling": Sampling(temperature=0)}
    messages = [generate(1, folder, PROMPT, **greedy), generate(2, folder, PROMPT[:5], **greedy)]
    recorder = run_threads(size, lambda c: run_engine(c, messages, settings))[0]
    assert recorder is not None
    assert recorder.tokens(1) == reference_greedy(folder, PROMPT, 8)
    assert recorder.tokens(2) == reference_greedy(folder, PROMPT[:5], 8)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ("always", "stream=always cannot be had on GPUs, which keep all weights; use device=cpu, or stream=never"),
        ("auto", r"on the GPU of a test .*, or a smaller .*; or use device=cpu stream=auto cache=FOLDER, which reads"),
        ("never", "; or use device=cpu stream=auto cache=FOLDER, which reads"),
    ],
)
def test_nothing_is_streamed_on_gpus(folder: Path, tmp_path: Path, stream: str, message: str) -> None:
    def work(runner: Runner) -> None:
        runner.place = as_gpu(None)
        settings = EngineSettings(context_length=32, block_size=4, stream=stream, shard_cache=str(tmp_path))
        Models(runner, settings).pin(ModelRef("m", str(folder)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "free_memory", lambda: needed(folder, 1, LAYERS))
        with pytest.raises(ModelError, match=message):
            lead(Single(), work)
