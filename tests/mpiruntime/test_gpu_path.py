"""The way of a GPU through a model, walked on the CPU: the same logits as the reference, recorded or not."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import ENCODERS, FAMILIES, PROMPT, reference_hidden, reference_logits, write_checkpoint
from support.devices import as_gpu
from support.emulated import Emulated
from support.worlds import BLOCK, lead, load_message, logits_in_pieces

from ollampi.kernels.cuda_module import Kernels
from ollampi.mpiruntime import slices
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.placement import Placement
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Chunk, Step, Stop, Unload
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import survey


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_checkpoint(root / name, **changes) for name, changes in {**FAMILIES, **ENCODERS}.items()}


def logits(
    comm: Communicator, folder: Path, kernels: Kernels | None, log: list[str] | None, pieces: list[int], **fields: str
) -> torch.Tensor | None:
    """Return the logits [T, V] of the prompt, fed in pieces, on rank 0; collective."""
    runner = Runner(comm, survey(comm))
    runner.place = as_gpu(kernels, log)
    if comm.rank:
        runner.follow()
        return None
    runner.lead_load(load_message(folder, **fields))
    found = logits_in_pieces(runner, PROMPT, pieces)
    runner.lead(Stop())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_reference(folders: dict[str, Path], family: str) -> None:
    expected = reference_logits(folders[family], PROMPT)
    for size in (1, 2, 3):
        log: list[str] = []
        found = run_threads(size, lambda c, log=log: logits(c, folders[family], None, log, [10, 1, 4, 1, 1]))[0]
        assert found is not None
        assert (found - expected).abs().max() <= 1e-4, f"{family} on {size} ranks"
        assert log.count("replay") == (
            0 if FAMILIES[family].get("model_type") in ("mixtral", "qwen3_moe") else 3 * size
        )


@pytest.mark.parametrize("family", ["llama3", "biases", "gemma2", "qwen3", "phi4", "mixtral"])
def test_the_kernels_give_the_same(folders: dict[str, Path], family: str) -> None:
    kernels = Emulated()
    found = logits(Single(), folders[family], kernels, None, [10, 1, 4, 1, 1])
    assert found is not None
    assert (found - reference_logits(folders[family], PROMPT)).abs().max() <= 1e-4
    assert {"look", "join", "turn_and_keep", "rms_norm", "gate", "multiply_plain"} <= set(kernels.launched)


@pytest.mark.parametrize("kernels", [None, Emulated()], ids=["torch", "kernels"])
@pytest.mark.parametrize(("kept", "quantize"), [("int8", "none"), ("bfloat16", "none"), ("auto", "q8"), ("auto", "q4")])
def test_fewer_bits_are_near(folders: dict[str, Path], kernels: Kernels | None, kept: str, quantize: str) -> None:
    fields = {"cache_dtype": kept, "quantize": quantize}
    found = logits(Single(), folders["llama3"], kernels, None, [10, 1, 4, 1, 1], **fields)

    def plainly(runner: Runner) -> torch.Tensor:
        runner.lead_load(load_message(folders["llama3"], **fields))
        return logits_in_pieces(runner, PROMPT, [10, 1, 4, 1, 1])

    expected = lead(Single(), plainly)
    assert found is not None
    assert expected is not None
    assert (found - expected).abs().mean() <= 0.03 * expected.abs().mean()  # activations are not rounded here


def test_an_encoder_sees_both_ways(folders: dict[str, Path]) -> None:
    comm = Single()
    runner = Runner(comm, survey(comm))
    runner.place = as_gpu(None, [])
    runner.lead_load(load_message(folders["bert"]))
    blocks = list(range(-(-len(PROMPT) // BLOCK)))
    pooled = runner.step(Step(0, [Chunk(PROMPT, 0, blocks, 0, len(PROMPT))])).pooled
    assert pooled is not None
    assert (pooled[0] - reference_hidden(folders["bert"], PROMPT).double().sum(0)).abs().max() <= 1e-3


def test_answers_of_many_lengths_are_recorded_in_few_shapes(folders: dict[str, Path]) -> None:
    comm, log = Single(), list[str]()
    runner, plain = Runner(comm, survey(comm)), Runner(comm, survey(comm))
    runner.place = as_gpu(None, log)
    for each in (runner, plain):
        each.lead_load(load_message(folders["mistral"]))
    prompts = [PROMPT[: 3 + 2 * i] for i in range(5)]
    tables = [[10 * i + 9 - j for j in range(8)] for i in range(5)]
    for each in (runner, plain):
        each.step(Step(0, [Chunk(p, 0, t[: -(-len(p) // BLOCK)], 0) for p, t in zip(prompts, tables, strict=True)]))
    for turn in range(12):
        some = range(5) if turn % 3 else range(turn % 5 + 1)
        chunks = []
        for i in some:
            start = len(prompts[i])
            prompts[i] = [*prompts[i], turn + i]
            chunks.append(Chunk([turn + i], start, tables[i][: start // BLOCK + 1], 1))
        found, wanted = (each.step(Step(0, chunks)).logits for each in (runner, plain))
        assert found is not None
        assert wanted is not None
        assert (found - wanted).abs().max() <= 1e-4
    assert log.count("replay") == 12
    assert log.count("record") <= 7


def test_a_model_that_is_loaded_anew_is_recorded_anew(folders: dict[str, Path]) -> None:
    comm, log = Single(), list[str]()
    for family in ("llama2", "llama3"):
        found = logits(comm, folders[family], None, log, [16, 1])
        assert found is not None
        assert (found - reference_logits(folders[family], PROMPT)).abs().max() <= 1e-4
    assert log == ["record", "replay"] * 2


@pytest.mark.parametrize("size", [1, 2])
def test_nothing_holds_a_model_that_is_unloaded_when_its_memory_is_given_back(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Else the driver keeps it as taken, and the next load finds too little."""
    held = list[weakref.ref[torch.Tensor]]()
    left = list[int]()  # how many are there, whenever memory is given back
    plain = slices.Reader.read

    def read(reader: slices.Reader, *given: Any) -> Any:
        found, report = plain(reader, *given)
        held.extend(weakref.ref(x) for x in found.decoder.tensors() if isinstance(x, torch.Tensor))
        return found, report

    monkeypatch.setattr(slices.Reader, "read", read)
    monkeypatch.setattr(Placement, "give_back", lambda _: left.append(sum(each() is not None for each in held)))

    def work(comm: Communicator) -> None:
        runner = Runner(comm, survey(comm))
        runner.place = as_gpu(None, None)
        if comm.rank:
            runner.follow()
            return
        for number in range(2):
            runner.lead_load(replace(load_message(folders["llama3"]), model=number))
        assert left == []
        runner.lead(Unload(0))
        runner.lead(Unload(1))
        runner.lead(Stop())

    run_threads(size, work)
    assert held
    assert min(left) == 0
