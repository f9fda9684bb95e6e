"""Every world size computes what transformers computes."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import FAMILIES, PROMPT, reference_greedy, reference_logits, write_checkpoint
from support.worlds import generate, load_and_compute, load_message, load_reports, run_engine

from ollampi.mpiruntime.checkpoint import open_checkpoint
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import num_parameters, shard_size
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.thread_world import run_threads

SIZES = range(1, 9)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_checkpoint(root / name, **changes) for name, changes in FAMILIES.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_reference_on_every_world(folders: dict[str, Path], family: str) -> None:
    expected = reference_logits(folders[family], PROMPT)
    for size in SIZES:
        found = run_threads(size, lambda c: load_and_compute(c, folders[family], PROMPT, [9, 1, 5, 1, 1]))[0]
        assert found is not None
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-4, f"{family} on {size} ranks"


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_equals_the_reference_on_every_world(folders: dict[str, Path], family: str) -> None:
    expected = reference_greedy(folders[family], PROMPT, 12)
    settings = EngineSettings(context_length=64, cache_tokens=64, block_size=4, max_step_tokens=7)
    messages = [generate(1, folders[family], PROMPT, sampling=GREEDY, max_tokens=12)]
    for size in SIZES:
        recorder = run_threads(size, lambda c: run_engine(c, messages, settings))[0]
        assert recorder is not None
        assert recorder.tokens(1) == expected, f"{family} on {size} ranks"
        assert recorder.last(1)["reason"] == "length"


def test_every_weight_is_held_and_counted(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        config = read_config(folder)
        for size in SIZES:
            reports = run_threads(size, lambda c, folder=folder: load_reports(c, folder))[0]
            assert reports is not None
            assert set.intersection(*(set(r.unread) for r in reports)) == set()
            for report in reports:
                assert report.weight_bytes == shard_size(config, Shard(report.rank, size), "float32").total_bytes
        sources = open_checkpoint(folder).sources.values()
        assert num_parameters(config) == sum(math.prod(source.shape) for source in sources)


def test_sharded_files_read_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "shards", shards=True, **FAMILIES["llama3"])
    assert len(list(folder.glob("*.safetensors"))) > 1
    expected = reference_logits(folders["llama3"], PROMPT)
    found = run_threads(3, lambda c: load_and_compute(c, folder, PROMPT, [17]))[0]
    assert found is not None
    assert (found - expected).abs().max() <= 1e-4


def test_a_row_that_is_not_finite_harms_no_other_token(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama3"], tmp_path / "poisoned")
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    for size in (2, 4):
        for rank in range(size):
            first = Shard(rank, size).of(len(table)).start
            if first not in PROMPT:
                table[first] = torch.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    untied = not read_config(folder).tied_embeddings
    assert untied  # else the head would hold the rows too
    expected = reference_logits(folders["llama3"], PROMPT)
    for size in (1, 2, 4):
        found = run_threads(size, lambda c: load_and_compute(c, folder, PROMPT, [17]))[0]
        assert found is not None
        assert (found - expected).abs().max() <= 1e-4


def test_bf16_is_close_to_the_reference(folders: dict[str, Path]) -> None:
    from support.worlds import lead, logits_in_pieces

    expected = reference_logits(folders["llama3"], PROMPT)
    for size in (1, 3):

        def work(comm):  # type: ignore[no-untyped-def]
            def led(runner):  # type: ignore[no-untyped-def]
                runner.lead_load(load_message(folders["llama3"], "bfloat16"))
                return logits_in_pieces(runner, PROMPT, [17])

            return lead(comm, led)

        found = run_threads(size, work)[0]
        error = (found - expected).abs().mean() / expected.abs().mean()
        assert error < 0.03  # bf16 has 8 bits
