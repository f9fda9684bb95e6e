"""The same assertions as in the thread world, on the ranks of a real MPI job."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from support.checkpoints import (
    FAMILIES,
    PROMPT,
    reference_greedy,
    reference_hidden,
    reference_logits,
    write_checkpoint,
)
from support.exchanges import assert_shared_rows, assert_sums_under_way
from support.worlds import Scraper, embed, generate, load_and_compute, load_reports, run_engine

from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError, OllampiError
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.world import survey

pytestmark = pytest.mark.mpi
SETTINGS = EngineSettings(context_length=64, cache_tokens=64, block_size=4, max_step_tokens=7)


@pytest.fixture(scope="session")
def folders(comm: Communicator, shared_folder: Path) -> dict[str, Path]:
    if comm.rank == 0:
        for name, changes in FAMILIES.items():
            write_checkpoint(shared_folder / name, **changes)
    comm.collect(b"written")
    return {name: shared_folder / name for name in FAMILIES}


def test_all_reduce_adds_over_all_ranks_in_fp32(comm: Communicator) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.arange(12, dtype=dtype).view(3, 4) + comm.rank
        total = comm.all_reduce(x)
        expected = comm.size * torch.arange(12.0).view(3, 4) + sum(range(comm.size))
        assert total.dtype == torch.float32
        assert torch.equal(total, expected)
        assert torch.equal(x, torch.arange(12, dtype=dtype).view(3, 4) + comm.rank)  # the input is left alone


def test_sums_may_be_under_way_and_rows_are_their_owners(comm: Communicator) -> None:
    assert_sums_under_way(comm)
    assert_shared_rows(comm)


def test_gather_joins_uneven_parts_in_rank_order(comm: Communicator) -> None:
    x = torch.full((2, comm.rank + 1), float(comm.rank))
    joined = comm.gather(x)
    if comm.rank:
        assert joined is None
    else:
        expected = torch.tensor([[float(r) for r in range(comm.size) for _ in range(r + 1)]] * 2)
        assert joined is not None
        assert torch.equal(joined, expected)


@pytest.mark.parametrize("length", [0, 1, 5000, 3_000_000])
def test_messages_of_any_length_reach_all_ranks_in_order(comm: Communicator, length: int) -> None:
    for turn in range(3):
        message = bytes([turn]) * length
        assert comm.broadcast(message if comm.rank == 0 else None) == message


def test_collect_and_notes(comm: Communicator) -> None:
    assert comm.collect(b"x" * comm.rank) == [b"x" * r for r in range(comm.size)]
    comm.notify(comm.rank + 1)
    comm.collect(b"")
    notes: list[int] = []
    while comm.rank == 0 and len(notes) < comm.size:
        notes += comm.notes()
    assert sorted(notes) == (list(range(1, comm.size + 1)) if comm.rank == 0 else [])
    comm.collect(b"")


def test_an_error_on_one_rank_is_everybodys(comm: Communicator) -> None:
    def work() -> int:
        if comm.rank == comm.size - 1:
            raise OllampiError("the last rank cannot")
        return 5

    with pytest.raises(ModelError, match="the last rank cannot"):
        agree(comm, work, ModelError)
    assert agree(comm, lambda: comm.rank) == comm.rank


def test_the_survey_names_every_rank(comm: Communicator) -> None:
    facts = survey(comm)
    assert [f.rank for f in facts] == list(range(comm.size))
    assert [f.local_rank for f in facts] == list(range(comm.size))  # one host
    assert all(f.threads >= 1 and f.local_size == comm.size for f in facts)


def test_no_shared_memory_file_is_left_by_name(comm: Communicator) -> None:
    from ollampi.mpiruntime import mpi

    named = mpi._SEGMENT.findall(Path("/proc/self/maps").read_text())
    assert [name for name in named if os.path.exists(name)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_reference(comm: Communicator, folders: dict[str, Path], family: str) -> None:
    found = load_and_compute(comm, folders[family], PROMPT, [9, 1, 5, 1, 1])
    if comm.rank == 0:
        assert found is not None
        assert (found - reference_logits(folders[family], PROMPT)).abs().max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_equals_the_reference(comm: Communicator, folders: dict[str, Path], family: str) -> None:
    greedy = Sampling(temperature=0.0)
    messages = [generate(i, folders[family], PROMPT[:n], sampling=greedy, max_tokens=9) for i, n in enumerate((17, 4))]
    recorder = run_engine(comm, messages, SETTINGS)
    if recorder is not None:
        for i, n in enumerate((17, 4)):
            assert recorder.tokens(i) == reference_greedy(folders[family], PROMPT[:n], 9)


def test_embeddings_equal_the_reference(comm: Communicator, folders: dict[str, Path]) -> None:
    folder = folders["llama3"]
    messages = [embed(i, folder, [PROMPT, PROMPT[:5]], pooling=("last", "mean")[i]) for i in (0, 1)]
    recorder = run_engine(comm, messages, SETTINGS)
    if recorder is not None:
        for place, length in enumerate((17, 5)):
            hidden = reference_hidden(folder, PROMPT[:length])
            assert (recorder.embeddings(0)[place] - hidden[-1]).abs().max() <= 1e-4
            assert (recorder.embeddings(1)[place] - hidden.mean(0)).abs().max() <= 1e-4


def test_weights_are_held_once_and_memory_is_as_planned(comm: Communicator, folders: dict[str, Path]) -> None:
    config = read_config(folders["llama3"])
    reports = load_reports(comm, folders["llama3"])
    for report in reports or []:
        assert report.weight_bytes == shard_size(config, Shard(report.rank, comm.size), "float32").total_bytes


def test_a_damaged_checkpoint_is_refused_by_all_and_the_next_load_works(
    comm: Communicator, folders: dict[str, Path], shared_folder: Path
) -> None:
    bad = shared_folder / "bad"
    if comm.rank == 0:
        write_checkpoint(bad)
        data = (bad / "model.safetensors").read_bytes()
        (bad / "model.safetensors").write_bytes(data[:-100])
    comm.collect(b"written")
    messages = [generate(1, bad, PROMPT, max_tokens=2), generate(2, folders["tied"], PROMPT, max_tokens=2)]
    recorder = run_engine(comm, messages, SETTINGS)
    if recorder is not None:
        assert "truncated" in recorder.last(1)["message"]
        assert len(recorder.tokens(2)) == 2


def test_counts_and_trace_come_from_every_rank(
    comm: Communicator, folders: dict[str, Path], shared_folder: Path
) -> None:
    """17 prompt tokens in pieces of at most 7, then 4 single ones: 7 steps, each with 1 + 2 all-reduces per layer."""
    greedy = Sampling(temperature=0.0)
    messages = [generate(1, folders["llama3"], PROMPT, sampling=greedy, max_tokens=5, max_drafts=0)]
    path = shared_folder / "trace.json"
    scraper = run_engine(comm, messages, SETTINGS, Scraper(messages) if comm.rank == 0 else None, trace=path)
    if comm.rank == 0:
        assert isinstance(scraper, Scraper)
        config = read_config(folders["llama3"])
        per_step = 1 + 2 * config.num_layers
        events = json.loads(path.read_text())["traceEvents"]
        for rank in range(comm.size):
            where = {"rank": str(rank), "kind": "all_reduce"}
            assert scraper.sample("ollampi_exchange_calls_total", **where) == 7 * per_step
            assert scraper.sample("ollampi_exchange_bytes_total", **where) == (17 + 4) * config.width * 4 * per_step
            names = [e["name"] for e in events if e["pid"] == rank + 1 and e["ph"] == "X" and e["args"]]
            assert [names.count(n) for n in ("forward", "all_reduce", "gather")] == [7, 7 * per_step, 5]
