"""A model whose layers are read again in every step computes the bits of the one that is in memory."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import write_adapter
from support.checkpoints import ENCODERS, FAMILIES, PROMPT, write_checkpoint
from support.packers import CONFIGS, quantised
from support.streaming import PIECES, five_layers, start
from support.worlds import lead, load_message, logits_in_pieces

from ollampi.mpiruntime import residence as residence_module
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.residence import InMemory, Streamed
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.step import Chunk, Step, Unload
from ollampi.mpiruntime.thread_world import ThreadCommunicator, run_threads

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of PEFT and transformers
SIZES = pytest.mark.parametrize("size", [1, 2, 3, 4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return five_layers(tmp_path_factory.mktemp("m") / "m")


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """What streams frees threads and files when its model leaves."""
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert threading.active_count() <= threads


@SIZES
@pytest.mark.parametrize(
    "how",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"quantize": "q8"},
        {"quantize": "q4", "dtype": "bfloat16"},
        {"deterministic": True},
    ],
    ids=lambda how: "-".join(map(str, how.values())),
)
def test_logits_have_the_bits_of_the_model_in_memory(
    folder: Path, tmp_path: Path, size: int, how: dict[str, Any]
) -> None:
    expected, _, _ = start(folder, size, **how)
    for streamed, prefetch in [(5, 2), (5, 0), (3, 1), (1, 64)]:
        logits, _, said = start(folder, size, tmp_path, num_streamed=streamed, prefetch_factor=prefetch, **how)
        assert torch.equal(logits, expected)
        assert said == []
    assert len(list(tmp_path.glob("*-layers-*"))) == size  # whatever was streamed


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("family", ["tied", "biases", "mixtral", "qwen3_moe", "gemma3", "phi3"])
def test_families(tmp_path: Path, size: int, family: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **FAMILIES[family])
    for experts in ("cut", "spread") if "moe" in family or family == "mixtral" else ("cut",):
        expected, before, _ = start(folder, size, experts=experts)
        for _ in range(2):  # with a file that is written, and one that is found
            logits, reports, _ = start(folder, size, tmp_path / "c", experts=experts, prefetch_factor=0)
            assert torch.equal(logits, expected)
            assert [r.unread for r in reports] == [r.unread for r in before]
            assert [r.formats for r in reports] == [r.formats for r in before]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", [next(name for name in CONFIGS if kind in name) for kind in ("awq", "gptq", "fp8")])
def test_files_that_are_quantised_and_adapters(tmp_path: Path, size: int, kind: str) -> None:
    base = write_checkpoint(tmp_path / "base")
    made, _ = quantised(base, tmp_path / "m", kind)
    adapter = write_adapter(base, tmp_path / "a", target_modules="all-linear")
    for how in ({"quantize": "auto"}, {"quantize": "none", "adapters": [str(adapter)]}):
        expected, _, _ = start(made, size, **how)
        for _ in range(2):
            assert torch.equal(start(made, size, tmp_path / "c", **how)[0], expected)
    assert len(list((tmp_path / "c").glob("*-layers-*"))) == 2 * size


@pytest.mark.parametrize("size", [1, 3])
def test_encoders(tmp_path: Path, size: int) -> None:
    folder = write_checkpoint(tmp_path / "m", **ENCODERS["bert"])
    step = Step(0, [Chunk(PROMPT, 0, list(range(8)), 0, len(PROMPT))])

    def pooled(**fields: Any) -> Any:
        def work(runner: Runner) -> Any:
            runner.lead_load(load_message(folder, **fields))
            runner.send(step)
            found = runner.step(step).pooled
            runner.lead(Unload(0))
            return found

        return run_threads(size, lambda c: lead(c, work))[0]

    assert torch.equal(pooled(num_streamed=2, prefetch_factor=0, shard_cache=str(tmp_path / "c")), pooled())


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("quantize", ["none", "q4"])
@pytest.mark.parametrize(("streamed", "prefetch"), [(0, 2), (5, 0), (5, 2), (4, 1), (2, 2)])
def test_ranks_hold_what_was_planned(
    folder: Path, tmp_path: Path, size: int, quantize: str, streamed: int, prefetch: int
) -> None:
    how = {"quantize": quantize, "num_streamed": streamed, "prefetch_factor": prefetch}
    _, reports, _ = start(folder, size, tmp_path, **how)
    config = read_config(folder)
    for report in reports:
        sizes = shard_size(config, Shard(report.rank, size), "float32", quantize)
        planned = sizes.schedule(streamed, prefetch)
        assert report.weight_bytes == sizes.held_bytes(streamed, prefetch)
        assert report.step_bytes == planned.step_bytes(sizes.runs)
        runs = sum(p.size_bytes for run in sizes.layout for p in run)
        if streamed == 5:
            largest = planned.buffer_bytes(sizes.runs)
            assert report.weight_bytes == sizes.total_bytes - runs + (prefetch + 1) * largest


def test_the_buffers_are_all_the_memory_that_layers_take(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is made for layers lies in buffers, which are as many as are read ahead and one."""
    made: list[int] = []
    real = residence_module.pages.aligned

    def aligned(size: int) -> torch.Tensor:
        made.append(size)
        return real(size)

    monkeypatch.setattr(residence_module.pages, "aligned", aligned)
    start(folder, 1, tmp_path, prefetch_factor=1)
    sizes = shard_size(read_config(folder), Shard(0, 1), "float32")
    assert made == [sizes.schedule(5, 1).buffer_bytes(sizes.runs)] * 2

    def work(runner: Runner) -> None:
        runner.lead_load(load_message(folder, num_streamed=5, prefetch_factor=1, shard_cache=str(tmp_path)))
        decoder = runner._models[0].decoder
        first = {t.data_ptr() for t in decoder.layers[0].attention.part.tensors() if t.dim() == 2}
        third = {t.data_ptr() for t in decoder.layers[2].attention.part.tensors() if t.dim() == 2}
        assert first == third
        assert isinstance(decoder.residence, Streamed)
        runner.lead(Unload(0))

    run_threads(1, lambda c: lead(c, work))


@SIZES
def test_a_step_reads_what_was_planned(folder: Path, tmp_path: Path, size: int) -> None:
    for streamed, prefetch in [(5, 0), (5, 1), (4, 2)]:
        how = {"num_streamed": streamed, "prefetch_factor": prefetch, "shard_cache": str(tmp_path)}

        def work(runner: Runner, how: dict[str, Any] = how) -> list[int]:
            (report, *_) = runner.lead_load(load_message(folder, **how))
            residence, counts = runner._models[0].decoder.residence, []
            assert isinstance(residence, Streamed)
            for _ in range(3):
                logits_in_pieces(runner, PROMPT, [17])
                residence._reader.submit(int).result()  # behind all that was to be read
                counts.append(residence.bytes_read)
            runner.lead(Unload(0))
            return [b - a - report.step_bytes for a, b in pairwise(counts)]

        assert run_threads(size, lambda c: lead(c, work))[0] == [0, 0]


def test_two_models_stream_beside_each_other(folder: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "m", seed=7, num_hidden_layers=3)
    expected = [start(path, 2)[0] for path in (folder, other)]

    def work(runner: Runner) -> list[torch.Tensor]:
        for number, path in enumerate((folder, other)):
            how = {"num_streamed": 3, "prefetch_factor": number, "shard_cache": str(tmp_path / "c")}
            message = load_message(path, **how)
            runner.lead_load(type(message)(**{**vars(message), "model": number}))
        found: list[list[Any]] = [[], []]
        start_at = 0
        for length in PIECES:
            for number in range(2):
                blocks = list(range(62, 0, -2))[: -(-(start_at + length) // 4)]
                step = Step(number, [Chunk(PROMPT[start_at : start_at + length], start_at, blocks, length)])
                runner.send(step)
                found[number].append(runner.step(step).logits)
            start_at += length
        for number in range(2):
            runner.lead(Unload(number))
        return [torch.cat(rows) for rows in found]

    found = run_threads(2, lambda c: lead(c, work))[0]
    assert found is not None
    assert all(map(torch.equal, found, expected))


def test_a_step_that_is_left_in_the_middle_harms_no_later_one(folder: Path, tmp_path: Path) -> None:
    expected, _, _ = start(folder, 1)

    def work(runner: Runner) -> torch.Tensor:
        runner.lead_load(load_message(folder, num_streamed=5, prefetch_factor=1, shard_cache=str(tmp_path)))
        residence = runner._models[0].decoder.residence
        for last in range(5):
            for number in residence.turns(range(5))[0]:
                if number == last:
                    break
        found = logits_in_pieces(runner, PROMPT, PIECES)
        runner.lead(Unload(0))
        return found

    assert torch.equal(run_threads(1, lambda c: lead(c, work))[0], expected)


@pytest.mark.parametrize("prefetch_factor", [1, 2])
def test_two_parts_of_a_step_may_be_a_layer_apart(folder: Path, tmp_path: Path, prefetch_factor: int) -> None:
    """Each sees the matrices of its own layer, however far the reading thread is."""

    def work(runner: Runner) -> None:
        how = {"num_streamed": 5, "prefetch_factor": prefetch_factor, "shard_cache": str(tmp_path)}
        runner.lead_load(load_message(folder, **how))
        decoder = runner._models[0].decoder
        residence = decoder.residence
        assert isinstance(residence, Streamed)
        matrices = [layer.attention.parts()[1].tensors()[0] for layer in decoder.layers]
        expected = []
        for number, _ in enumerate(residence.turns(decoder.layers)[0]):
            expected.append(matrices[number].clone())
        for _ in range(2):
            first, second = (enumerate(turns) for turns in residence.turns(decoder.layers, 2))
            for number, _ in first:
                residence._reader.submit(int).result()  # whatever may be read has been
                assert torch.equal(matrices[number], expected[number])
                if number:
                    behind, _ = next(second)
                    assert behind == number - 1
                    residence._reader.submit(int).result()
                    assert torch.equal(matrices[behind], expected[behind])
            assert [number for number, _ in second] == [4]
        runner.lead(Unload(0))

    run_threads(1, lambda c: lead(c, work))


def test_two_parts_of_a_step_cannot_share_one_buffer(folder: Path, tmp_path: Path) -> None:
    def work(runner: Runner) -> None:
        how = {"num_streamed": 5, "prefetch_factor": 0, "shard_cache": str(tmp_path)}
        runner.lead_load(load_message(folder, **how))
        residence = runner._models[0].decoder.residence
        assert residence.most_passages == 1
        with pytest.raises(ValueError, match="2 parts of a step cannot share 1 buffer"):
            residence.turns(range(5), 2)
        runner.lead(Unload(0))

    run_threads(1, lambda c: lead(c, work))


@SIZES
@pytest.mark.parametrize("prefetch_factor", [0, 1])
def test_steps_are_cut_only_where_halves_have_two_buffers(
    folder: Path, tmp_path: Path, size: int, prefetch_factor: int
) -> None:
    how = {"num_streamed": 5, "prefetch_factor": prefetch_factor, "shard_cache": str(tmp_path)}

    def work(runner: Runner) -> torch.Tensor:
        runner.lead_load(load_message(folder, **how))
        found = logits_in_pieces(runner, PROMPT, PIECES)
        runner.lead(Unload(0))
        return found

    def rank(comm: ThreadCommunicator) -> torch.Tensor | None:
        return lead(comm, work, overlap="always")

    torch.testing.assert_close(run_threads(size, rank)[0], start(folder, size)[0])


def test_in_memory_nothing_happens() -> None:
    place = InMemory()
    assert list(place.runs(3)) == [None] * 3
    assert [list(turns) for turns in place.turns("abc", 2)] == [["a", "b", "c"]] * 2
    place.close()
