"""Placements behind an engine on the ranks of a real MPI job: answers as alone, whatever overlaps, comes and goes."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, reference_greedy, write_checkpoint
from support.worlds import InStages, come_back, generate, leave, named, place, run_engine

from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.request import Sampling

pytestmark = pytest.mark.mpi
SETTINGS = EngineSettings(context_length=64, cache_tokens=256, block_size=4, max_step_tokens=7, max_loaded_models=9)


@pytest.fixture(scope="session")
def placed(comm: Communicator, shared_folder: Path) -> dict[str, Path]:
    folders = {name: shared_folder / f"placed-{name}" for name in "ab"}
    if comm.rank == 0:
        for seed, folder in enumerate(folders.values()):
            write_checkpoint(folder, seed=seed)
    comm.collect(b"written")
    return folders


@lru_cache
def alone(folder: Path, length: int) -> list[int]:
    return reference_greedy(folder, PROMPT[:length], 6)


def ask(number: int, name: str, folder: Path, length: int) -> dict[str, Any]:
    greedy = Sampling(temperature=0.0)
    return named(name, generate(number, folder, PROMPT[:length], sampling=greedy, max_tokens=6))


@pytest.mark.parametrize("role", ["mixed", "coordinator"])
def test_models_on_disjoint_and_overlapping_groups_answer_as_alone(
    comm: Communicator, placed: dict[str, Path], role: str
) -> None:
    """Placements at random, with loads and unloads between the requests; plain ones use all ranks."""
    draw = random.Random(3)
    usable = list(range(comm.size))[1 if role == "coordinator" and comm.size > 1 else 0 :]
    messages, asked = [], []
    for number in range(40):
        name = draw.choice("ab")
        if number % 8 == 0:
            groups = [sorted(draw.sample(usable, draw.randint(1, len(usable)))) for _ in range(draw.randint(1, 3))]
            messages.append(place(1000 + number, name, placed[name], ranks=groups))
        elif number % 13 == 0:
            messages.append({"op": "unload", "id": 1000 + number, "model": {"name": name}})
        else:
            asked.append((number, name, draw.choice((3, 9))))
            messages.append(ask(number, name, placed[name], asked[-1][2]))
    recorder = run_engine(comm, messages, SETTINGS, cluster=ClusterSettings(node_role=role))
    if recorder is not None:
        assert all(e["kind"] != "error" for e in recorder.log)
        for number, name, length in asked:
            assert recorder.tokens(number) == alone(placed[name], length)


def test_ranks_leave_and_come_back_while_answers_go_on(comm: Communicator, placed: dict[str, Path]) -> None:
    """The last rank leaves; where there are no others, or none that could take over, it stays and nothing changes."""
    last, folder = comm.size - 1, placed["a"]
    stages = [
        [place(100, "a", folder, ranks=[[last]])],
        [ask(1, "a", folder, 9), leave(101, last), ask(2, "a", folder, 3)],
        [ask(3, "a", folder, 9), place(102, "b", placed["b"], shards=1), ask(4, "b", placed["b"], 9)],
        [come_back(103, last)],
        [place(104, "b", placed["b"], ranks=[[last]]), ask(5, "b", placed["b"], 3)],
    ]
    recorder = run_engine(comm, [], SETTINGS, InStages(*stages))
    if recorder is None:
        return
    for number, name, length in ((1, "a", 9), (2, "a", 3), (3, "a", 9), (4, "b", 9), (5, "b", 3)):
        assert recorder.tokens(number) == alone(placed[name], length)
    assert [recorder.last(n)["kind"] for n in (101, 103)] == (["departed", "back"] if last else ["error", "error"])
    if last:
        assert recorder.last(101)["moved"] == ["a lies on node-0"]
