"""What is known of a model goes with it at once: a collection of cycles may be thousands of loads away."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.worlds import lead, loaded

from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.heap import give_back
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.thread_world import run_threads

SETTINGS = EngineSettings(context_length=64, cache_tokens=256, block_size=4)


@pytest.fixture
def no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("size", [1, 2])
def test_a_model_that_was_unloaded_is_no_more(size: int, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")

    def work(runner: Runner) -> list[object]:
        models = Models(runner, SETTINGS)
        hosted = loaded(models, ModelRef("m", str(folder)))
        parts = hosted, hosted.scheduler, hosted.scheduler.blocks, runner._models[hosted.number].cache
        known = [weakref.ref(part) for part in parts]
        del hosted, parts
        models.unload_when_idle("m")
        while runner.background.busy:  # it is freed beside steps
            runner.background.look()
        return [part() for part in known]

    assert run_threads(size, lambda comm: lead(comm, work))[0] == [None] * 4


@pytest.mark.usefixtures("no_collections")
def test_giving_memory_back_leaves_no_cycles() -> None:
    give_back()
    gc.collect()
    for _ in range(3):
        give_back()
    assert gc.collect() == 0
