"""A model that needs memory gets that of idle ones, least recently used first; what works is waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, reference_greedy, write_checkpoint
from support.worlds import Recorder, generate, loaded, named, run_engine

from ollampi.mpiruntime.cache_size import RankMemory
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import MemoryShortError, ModelError
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.request import ModelRef, Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Stop
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import survey

GREEDY = Sampling(temperature=0.0)
SETTINGS = EngineSettings(cache_tokens=64, context_length=32, block_size=4, max_step_tokens=16, max_loaded_models=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let each rank have memory for so many models, which all have one size."""

    def limit(count: float) -> None:
        plain = Runner._memory

        def memory(self: Runner, check: Any) -> RankMemory:
            found = plain(self, check)
            loaded = list(self._models.values())
            need = found.fixed_bytes[0] + check.num_blocks * found.block_bytes  # more than what it holds later
            one = loaded[0].decoder.size_bytes + loaded[0].cache.size_bytes if loaded else 0
            held = sum(m.decoder.size_bytes + m.cache.taken_bytes for m in loaded)
            return replace(found, holder=f"rank {self.comm.rank}", free_bytes=int(need + (count - 1) * one) - held)

        monkeypatch.setattr(Runner, "_memory", memory)

    return limit


def in_world(size: int, work: Callable[[Models], Any], settings: EngineSettings = SETTINGS) -> Any:
    """Return what `work` makes of the models of rank 0."""

    def rank(comm: Communicator) -> Any:
        runner = Runner(comm, survey(comm))
        if comm.rank:
            runner.follow()
            return None
        try:
            return work(Models(runner, settings))
        finally:
            runner.lead(Stop())

    return run_threads(size, rank)[0]


def names(models: Models) -> list[str]:
    return [m.name for m in models.listing()]


@pytest.mark.parametrize("size", [1, 3])
def test_the_least_recently_used_model_makes_room_and_no_more_than_must(
    folder: Path, size: int, room_for: Callable[[float], None]
) -> None:
    room_for(3)

    def work(models: Models) -> list[list[str]]:
        found = []
        for name in ("a", "b", "c"):
            loaded(models, ModelRef(name, str(folder)))
        models.hosted()[0].touch()  # a was used last
        for name in ("d", "e"):
            loaded(models, ModelRef(name, str(folder)))
            found.append(names(models))
        return found

    assert in_world(size, work) == [["a", "c", "d"], ["a", "d", "e"]]


def test_several_models_go_for_a_larger_one_and_those_that_stay_for_ever_go_last(
    folder: Path, room_for: Callable[[float], None]
) -> None:
    def work(models: Models) -> list[str]:
        room_for(3)
        models.pin(ModelRef("stays", str(folder)))
        for name in ("b", "c"):
            loaded(models, ModelRef(name, str(folder)))
        room_for(0.5)  # so that nothing is enough
        with pytest.raises(ModelError, match=r"model big: .* needs .* are free"):
            loaded(models, ModelRef("big", str(folder)))
        assert names(models) == ["stays", "b", "c"]  # nobody left for what cannot be
        return names(models)

    assert in_world(1, work) == ["stays", "b", "c"]

    room_for(2)

    def second(models: Models) -> list[str]:
        models.pin(ModelRef("stays", str(folder)))
        loaded(models, ModelRef("b", str(folder)))
        loaded(models, ModelRef("c", str(folder)))
        return names(models)

    assert in_world(1, second) == ["stays", "c"]


@pytest.mark.parametrize("size", [1, 2])
def test_a_model_that_works_is_waited_for(
    folder: Path, other: Path, size: int, room_for: Callable[[float], None]
) -> None:
    room_for(1)
    messages = [
        named("a:latest", generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=8)),
        named("b:latest", generate(2, other, PROMPT, sampling=GREEDY, max_tokens=4)),
        named("a:latest", generate(3, folder, PROMPT, sampling=GREEDY, max_tokens=2)),
    ]
    recorder: Recorder | None = run_threads(size, partial(run_engine, messages=messages, settings=SETTINGS))[0]
    assert recorder is not None
    assert recorder.tokens(1) == reference_greedy(folder, PROMPT, 8)
    assert recorder.tokens(2) == reference_greedy(other, PROMPT, 4)
    assert recorder.tokens(3) == reference_greedy(folder, PROMPT, 2)


def test_preloaded_models_stay_whatever_keep_alive_says(folder: Path, other: Path) -> None:
    def work(models: Models) -> list[float]:
        models.pin(ModelRef("a", str(folder)))
        kept = [models.preload(ModelRef("b", str(other))).keep_s, models.preload(ModelRef("b", str(other))).keep_s]
        hosted = loaded(models, ModelRef("b", str(other)))
        hosted.keep(None)  # as a request does that says nothing of it
        models.expire(hosted.stay.last_used + 1e9)
        kept += [hosted.keep_s, len(names(models))]
        models.pin(ModelRef("a", str(folder)))
        return [*kept, models.preload(ModelRef("a", str(folder))).keep_s]

    settings = replace(SETTINGS, keep_alive_s=5.0)
    assert in_world(1, work, settings) == [-1.0, -1.0, -1.0, 1, -1.0]  # the start model goes unless it is named too


def test_what_cannot_be_preloaded_is_refused_and_sends_nobody_away(
    folder: Path, room_for: Callable[[float], None]
) -> None:
    room_for(1)

    def work(models: Models) -> list[str]:
        models.pin(ModelRef("a", str(folder)))
        with pytest.raises(ModelError, match=r"model b: .* needs"):
            models.preload(ModelRef("b", str(folder)))
        return names(models)

    assert in_world(1, work) == ["a"]

    def crowded(models: Models) -> None:
        models.pin(ModelRef("a", str(folder)))
        with pytest.raises(
            ModelError, match=r"b of cluster\.preload has no place beside a: engine\.max_loaded_models is 1"
        ):
            models.preload(ModelRef("b", str(folder)))

    in_world(1, crowded, replace(SETTINGS, max_loaded_models=1))


def test_the_error_of_memory_is_one_of_the_model() -> None:
    assert issubclass(MemoryShortError, ModelError)
