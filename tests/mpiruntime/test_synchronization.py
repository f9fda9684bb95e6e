"""One sum in a layer: exact where attention and MLP see the same input, else marked; with how many all-reduces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import FAMILIES, PROMPT, reference_logits, write_checkpoint
from support.worlds import lead, load_message, logits_in_pieces, world_logits

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import reduced_bytes
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.synchronization import ONCE, is_approximate, told
from ollampi.mpiruntime.thread_world import run_threads

LAYERS = 2
EXACT = ["cohere", "cohere_biases", "cohere_plus", "phi", "phi_grouped"]
APPROXIMATE = ["llama3", "biases", "mixtral", "qwen3"]
WHOLE = ["gemma2"]  # norms behind the parts


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_checkpoint(root / name, **FAMILIES[name]) for name in EXACT + APPROXIMATE + WHOLE}


def all_reduces(folder: Path, size: int, points: str) -> int:
    """Return how many all-reduces a step of a world has."""

    def work(comm: Communicator) -> float | None:
        def led(runner: Runner) -> float:
            runner.lead_load(load_message(folder, points=points))
            logits_in_pieces(runner, PROMPT, [len(PROMPT)])
            return float(runner.meters.of("", runner.groups.world).counts.all_reduce.calls)

        return lead(comm, led)

    found = run_threads(size, work)[0]
    assert found is not None
    return int(found)


@pytest.mark.parametrize("points", ["all", ONCE])
@pytest.mark.parametrize("family", EXACT)
def test_parallel_attention_is_exact_either_way(folders: dict[str, Path], family: str, points: str) -> None:
    expected = reference_logits(folders[family], PROMPT)
    for size in (1, 2, 3, 8):
        found = world_logits(size, folders[family], PROMPT, [9, 1, 7], points=points)
        assert (found - expected).abs().max() <= 1e-4, f"{family} on {size} ranks"
    assert not is_approximate(read_config(folders[family]), points, 8)


@pytest.mark.parametrize("family", APPROXIMATE)
def test_other_models_are_exact_on_one_rank_and_marked_on_several(folders: dict[str, Path], family: str) -> None:
    expected = reference_logits(folders[family], PROMPT)
    assert (world_logits(1, folders[family], PROMPT, [9, 1, 7], points=ONCE) - expected).abs().max() <= 1e-4
    several = world_logits(2, folders[family], PROMPT, [9, 1, 7], points=ONCE)
    assert several.isfinite().all()
    assert (several - expected).abs().max() > 1e-3  # which is why it must be marked
    config = read_config(folders[family])
    assert (is_approximate(config, ONCE, 1), is_approximate(config, ONCE, 2)) == (False, True)
    assert told(config, ONCE, 2).startswith("APPROXIMATE")
    assert told(config, "all", 2) == ""


def test_norms_behind_the_parts_and_deterministic_need_whole_sums(folders: dict[str, Path]) -> None:
    expected = reference_logits(folders["gemma2"], PROMPT)
    assert (world_logits(3, folders["gemma2"], PROMPT, [17], points=ONCE) - expected).abs().max() <= 1e-4
    assert "is ignored" in told(read_config(folders["gemma2"]), ONCE, 3)
    assert "is ignored" in told(read_config(folders["llama3"]), ONCE, 3, deterministic=True)
    exact = [
        world_logits(size, folders["llama3"], PROMPT, [17], points=ONCE, deterministic=True, num_blocks=64)
        for size in (1, 3)
    ]
    assert torch.equal(*exact)


@pytest.mark.parametrize(
    ("family", "all_", "once"),
    [
        ("cohere", 2 * LAYERS + 1, LAYERS + 1),
        ("phi", 2 * LAYERS + 1, LAYERS + 1),
        ("llama3", 2 * LAYERS + 1, LAYERS + 2),
        ("gemma2", 2 * LAYERS + 1, 2 * LAYERS + 1),
    ],
)
def test_all_reduces_are_those_of_the_plan(folders: dict[str, Path], family: str, all_: int, once: int) -> None:
    for size in (1, 3):
        assert [all_reduces(folders[family], size, points) for points in ("all", ONCE)] == [all_, once]
    config = read_config(folders[family])
    assert [reduced_bytes(config, points)[0] for points in ("all", ONCE)] == [all_, once]
