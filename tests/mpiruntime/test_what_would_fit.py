"""Replicas are checked together before anything is loaded, and a refusal says what of the model would fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, reference_greedy, write_checkpoint
from support.worlds import Recorder, generate, lead, named, place, run_engine

from ollampi.mpiruntime import placement
from ollampi.mpiruntime import runner as runner_module
from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import MemoryShortError
from ollampi.mpiruntime.eviction import NotYet
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.memory import RUNTIME_BYTES, cache_bytes
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.placed import Placed
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.request import ModelRef, Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.thread_world import run_threads

SETTINGS = EngineSettings(context_length=32, block_size=4, stream="never")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of 2.6 MB in fp32 with heads that can be cut within no group."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32}
    return write_checkpoint(tmp_path_factory.mktemp("m") / "m", **sizes)


def needs(folder: Path, shards: int, tokens: int = 32, quantize: str = "none") -> int:
    """Return what a host must have for one replica on so many of its ranks."""
    config = read_config(folder)
    ranks = [Shard(rank, shards) for rank in range(shards)]
    weights = sum(shard_size(config, rank, "float32", quantize).total_bytes for rank in ranks)
    return weights + shards * RUNTIME_BYTES + sum(cache_bytes(config, rank, tokens, "float32") for rank in ranks)


def on_hosts(free: int, size: int, work: Any, shared: bool, settings: EngineSettings = SETTINGS) -> Any:
    """Return what `work` makes of the models; each rank has `free` bytes of its own unless all share them."""
    plain = Runner._memory

    def apart(self: Runner, check: Any) -> Any:
        found = plain(self, check)
        return type(found)(**{**vars(found), "holder": f"rank {self.comm.rank}"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "free_memory", lambda: free)
        if not shared:
            patch.setattr(Runner, "_memory", apart)
        return run_threads(size, lambda comm: lead(comm, lambda runner: work(Models(runner, settings))))[0]


def loaded(models: Models, folder: Path, wish: Wish) -> Placed:
    """Return a model placed as wished, once ranks without rank 0 have loaded."""
    while True:
        try:
            return models.place(ModelRef("m", str(folder)), wish)
        except NotYet:
            while not models.go_on():
                models.runner.replies.wait(0.05)


def refusal(free: int, size: int, folder: Path, wish: Wish | None, **how: Any) -> str:
    """Return why a model cannot be had; nothing is in memory then, and nothing was loaded."""
    loads: list[Any] = []
    begin = runner_module.Runner.begin

    def work(models: Models) -> str:
        ref = ModelRef("m", str(folder))
        with pytest.raises(MemoryShortError) as caught:
            models.get(ref) if wish is None else models.place(ref, wish)
        assert models.hosted() == []
        assert models.loading is None
        return str(caught.value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "begin", lambda self, load: (loads.append(load), begin(self, load))[1])
        told: str = on_hosts(free, size, work, **how)
    assert loads == []
    return told


@pytest.mark.parametrize("wish", [Wish(shards=1, replicas=3), Wish(ranks=[[0], [1], [2]]), Wish(ranks=[[2], [2], [1]])])
def test_no_replica_is_loaded_where_not_all_of_them_fit(folder: Path, wish: Wish) -> None:
    enough = 3 * needs(folder, 1)
    told = refusal(enough - 1, 3, folder, wish, shared=True)
    assert "cache tokens in each of 3 replicas needs" in told
    assert "(3 shards) but" in told

    def work(models: Models) -> list[tuple[int, ...]]:
        placed = loaded(models, folder, wish)
        assert {replica.cache_tokens for replica in placed.replicas} == {32}
        return [replica.ranks for replica in placed.replicas]

    # free memory stays what it is in this test, so what loaded replicas hold is not seen: all of it is theirs
    assert sorted(on_hosts(enough, 3, work, shared=True)) == sorted(map(tuple, wish.ranks or [[0], [1], [2]]))


def test_replicas_of_a_strategy_are_counted_together(folder: Path) -> None:
    """Four ranks share memory for two replicas of one shard, but not of two, each of which takes RUNTIME_BYTES."""

    def work(models: Models) -> list[tuple[int, ...]]:
        wish = Wish(strategy="memory-optimized", replicas=2)
        return [replica.ranks for replica in loaded(models, folder, wish).replicas]

    assert on_hosts(2 * needs(folder, 1), 4, work, shared=True) == [(0,), (1,)]


def test_caches_of_all_replicas_are_alike_and_leave_the_part_that_was_told(folder: Path) -> None:
    config = read_config(folder)
    position = cache_bytes(config, Shard(0, 1), 1, "float32")
    free = 2 * needs(folder, 1, 0) + 2000 * position

    def work(models: Models) -> list[int]:
        placed = loaded(models, folder, Wish(shards=1, replicas=2))
        return [replica.cache_tokens for replica in placed.replicas]

    assert on_hosts(free, 2, work, shared=True) == [500, 500]  # half of what the weights leave, in two


@pytest.mark.parametrize(
    ("wish", "free", "told"),
    [
        (Wish(shards=1), ("none", 2), "; it would fit with shards=2"),
        (Wish(ranks=[[1]]), ("none", 2), "; it would fit with shards=2"),
        (Wish(shards=1), ("none", 3), "; it would fit with shards=3"),
        (Wish(shards=3), ("q8", 3), "; it would fit with quantize=q8"),
        (Wish(shards=3), ("q4", 3), "; it would fit with quantize=q4"),
        (Wish(), ("q8", 3), "; it would fit with quantize=q8"),
        (None, ("q8", 3), "; it would fit with quantize=q8"),
        (Wish(shards=1), ("q8", 3), "; it would fit with shards=3 and quantize=q8"),
        (Wish(shards=1, replicas=3), ("q8", 1), "; it would fit with quantize=q8"),
        (Wish(shards=1), ("", 3), "; nor would it in fewer bits or on more of these ranks"),
    ],
)
def test_a_refusal_names_the_largest_that_would_fit(
    folder: Path, wish: Wish | None, free: tuple[str, int], told: str
) -> None:
    """Each rank has the memory that the largest of so many shards in some format takes, or none."""
    quantize, shards = free
    config = read_config(folder)
    largest = 0
    for rank in range(shards) if quantize else ():
        shard = Shard(rank, shards)
        weights = shard_size(config, shard, "float32", quantize).total_bytes
        largest = max(largest, weights + RUNTIME_BYTES + cache_bytes(config, shard, 32, "float32"))
    message = refusal(largest, 3, folder, wish, shared=False)
    assert message.endswith(told), message
    assert " needs " in message
    assert " are free" in message


def test_the_largest_context_is_that_of_the_host_with_the_least(folder: Path) -> None:
    config = read_config(folder)
    position = cache_bytes(config, Shard(0, 1), 1, "float32")
    told = refusal(needs(folder, 1, 0) + 27 * position, 1, folder, None, shared=True)
    assert "which is enough with at most 24 cache tokens" in told  # whole blocks


def test_deterministic_weights_are_not_told_to_have_fewer_bits(folder: Path) -> None:
    settings = EngineSettings(**{**vars(SETTINGS), "deterministic": True})
    told = refusal(needs(folder, 1) - 1, 1, folder, None, shared=True, settings=settings)
    assert "quantize=q" not in told


def test_the_client_learns_it_with_the_code_of_memory_and_others_go_on(folder: Path) -> None:
    other = write_checkpoint(folder.parent / "other")
    free = needs(other, 1) + 2 * RUNTIME_BYTES
    prompt = PROMPT[:5]
    greedy: dict[str, Any] = {"max_tokens": 4, "sampling": Sampling(temperature=0)}
    messages = [
        place(1, "a", other, ranks=[[0]]),
        place(2, "b", folder, shards=1, replicas=3, context=2048),
        {"op": "loaded", "id": 3, "behind": [1, 2]},
        named("a", generate(4, other, prompt, **greedy)),
    ]
    settings = EngineSettings(context_length=32, block_size=4, max_loaded_models=2, cache_tokens=32, stream="never")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "free_memory", lambda: free)
        recorder = run_threads(3, lambda comm: run_engine(comm, messages, settings))[0]
    assert isinstance(recorder, Recorder)
    assert (recorder.last(1)["kind"], recorder.last(2)["code"]) == ("placed", "memory")
    assert "in each of 3 replicas" in recorder.last(2)["message"]
    assert [model["name"] for model in recorder.last(3)["models"]] == ["a"]
    assert recorder.tokens(4) == reference_greedy(other, prompt, 4)
