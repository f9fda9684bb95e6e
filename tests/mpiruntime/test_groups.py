"""Models on groups of ranks, in a world of threads: any subset, overlapping or not, with rank 0 or without it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import PROMPT, reference_logits, write_checkpoint
from support.groups import Reading, load_on, read_together, unload
from support.worlds import lead, load_message

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.replies import Reply, decode_reply, encode_reply
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Check
from ollampi.mpiruntime.thread_world import run_threads

GROUPS = [(0, 1), (1, 2), (0, 2), (2, 3), (1,), (3,), (0, 1, 2, 3), (0,), (1, 2, 3)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [write_checkpoint(root / f"m{seed}", seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def expected(folders: list[Path]) -> list[torch.Tensor]:
    return [reference_logits(folder, PROMPT) for folder in folders]


@pytest.mark.parametrize("ranks", GROUPS)
def test_a_group_computes_what_the_reference_does(
    folders: list[Path], expected: list[torch.Tensor], ranks: tuple[int, ...]
) -> None:
    def work(runner: Runner) -> torch.Tensor:
        assert load_on(runner, 5, folders[0], ranks) == list(ranks)
        reading = Reading(5, PROMPT, [])
        read_together(runner, [reading], 0)
        unload(runner, 5)
        assert len(runner.groups) == 1
        return torch.cat(reading.rows)

    found = run_threads(4, lambda comm: lead(comm, work))[0]
    assert found is not None
    assert (found - expected[0]).abs().max() <= 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_groups_that_overlap_with_loads_in_between_end_with_equal_answers(
    folders: list[Path], expected: list[torch.Tensor], seed: int
) -> None:
    def work(runner: Runner) -> None:
        draw, number, held = random.Random(seed), 0, dict[int, int]()
        for turn in range(12):
            while len(held) < 4:
                held[number] = draw.randrange(2)
                load_on(runner, number, folders[held[number]], draw.choice(GROUPS))
                number += 1
            readings = [Reading(model, PROMPT[:5], []) for model in held]
            read_together(runner, readings, seed + turn)
            for reading in readings:
                found = torch.cat(reading.rows)
                assert (found - expected[held[reading.number]][:5]).abs().max() <= 1e-4
            for model in draw.sample(sorted(held), 2):
                unload(runner, model)
                del held[model]
        for model in held:
            unload(runner, model)

    runners: list[Runner] = []
    run_threads(4, lambda comm: lead(comm, lambda runner: (runners.append(runner), work(runner))[1]))
    assert len(runners[0].groups) == 1


def test_a_group_is_made_once_for_all_its_models_and_freed_behind_the_last(folders: list[Path]) -> None:
    def work(runner: Runner) -> list[int]:
        counts = []
        for number in range(3):
            load_on(runner, number, folders[0], (0, 1))
            counts.append(len(runner.groups))
        for number in range(3):
            unload(runner, number)
            counts.append(len(runner.groups))
        return counts

    assert run_threads(3, lambda comm: lead(comm, work))[0] == [2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("ranks", [(1, 2), (0, 2), (2,)])
def test_what_cannot_be_loaded_leaves_no_group_behind(
    folders: list[Path], tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    bad = write_checkpoint(tmp_path / "bad")
    data = (bad / "model.safetensors").read_bytes()
    (bad / "model.safetensors").write_bytes(data[:-100])

    def work(runner: Runner) -> int:
        check = Check(**{**vars(load_message(bad)), "model": 7, "ranks": list(ranks)}, most_blocks=64)
        with pytest.raises(ModelError, match="truncated"):
            runner.lead_check(check)
        with pytest.raises(ModelError, match="truncated"):
            load_on(runner, 7, bad, ranks)
        assert load_on(runner, 7, folders[0], ranks) == list(ranks)
        unload(runner, 7)
        return len(runner.groups)

    assert run_threads(3, lambda comm: lead(comm, work))[0] == 1


@pytest.mark.parametrize("ranks", [(1, 2), (0, 2)])
def test_a_part_with_broken_values_is_named_by_any_group(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    folder = write_checkpoint(tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"].view(-1)[0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    def work(runner: Runner) -> str | None:
        load_on(runner, 7, folder, ranks)
        reading = Reading(7, PROMPT, [])
        step = reading.send(runner)
        reading.take(runner, step)
        return runner.lead_probe(step)

    assert run_threads(3, lambda comm: lead(comm, work))[0] == "the MLP of layer 1"


def test_an_answer_comes_back_as_it_was() -> None:
    from ollampi.mpiruntime.decoder import Output

    output = Output(torch.randn(3, 7), torch.randn(2, 5, dtype=torch.float64))
    found = decode_reply(encode_reply(Reply(9, output, part="x", error="é")))
    assert (found.number, found.part, found.error, found.memories, found.report) == (9, "x", "é", [], None)
    assert found.output.logits is not None
    assert found.output.pooled is not None
    assert torch.equal(found.output.logits, output.logits)
    assert torch.equal(found.output.pooled, output.pooled)
    empty = decode_reply(encode_reply(Reply(1, Output(torch.empty(0, 7))))).output
    assert empty.logits is not None
    assert empty.logits.shape == (0, 7)
    assert empty.pooled is None
