"""Deterministic arithmetic: the same bits in any company, pieces and world, and when an answer is taken up again.

And what holds without it: the same random numbers always, the same text in the same batch on the same world.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.arithmetic import threads
from support.checkpoints import FAMILIES, PROMPT, reference_greedy, reference_logits, write_checkpoint
from support.worlds import BLOCK, Recorder, generate, lead, load_message, logits_in_pieces, run_engine

from ollampi.kernels.choice import NATIVE
from ollampi.mpiruntime.arithmetic import Exact, Plain, arithmetic
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.philox import uniforms
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Chunk, Step
from ollampi.mpiruntime.thread_world import run_threads

SEEDED = Sampling(temperature=1.0, seed=42, top_k=0, top_p=1.0)
SETTINGS = EngineSettings(dtype="float32", cache_tokens=256, block_size=4, max_step_tokens=64, deterministic=True)
PIECES = {"one": [1] * 17, "three": [3] * 5 + [2], "seven": [7, 7, 3], "all": [17]}
FOLDERS = ("llama3", "wide_heads", "biases", "tied")  # GQA, one KV head of odd width, MLP of 100, tied embeddings
ODD_HEADS = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Let the ranks of a thread world not fight for the cores; other tests change the number of threads."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    rows = {**{name: FAMILIES[name] for name in FOLDERS}, "odd_heads": ODD_HEADS}
    return {name: write_checkpoint(root / name, **changes) for name, changes in rows.items()}


def logits(size: int, folder: Path, pieces: list[int], dtype: str = "float32") -> torch.Tensor:
    """Return the deterministic logits [17, V] of PROMPT in pieces."""

    def work(runner: Runner) -> torch.Tensor:
        runner.lead_load(load_message(folder, dtype, deterministic=True))
        return logits_in_pieces(runner, PROMPT, pieces)

    found = run_threads(size, lambda comm: lead(comm, work))[0]
    assert found is not None
    return found


def answers(size: int, messages: list[dict[str, Any]], settings: EngineSettings = SETTINGS) -> Recorder:
    recorder = run_threads(size, lambda c: run_engine(c, messages, settings))[0]
    assert recorder is not None
    return recorder


@pytest.mark.parametrize("family", [*FOLDERS, "odd_heads"])
def test_every_world_computes_the_same_bits(folders: dict[str, Path], family: str) -> None:
    for dtype in ("float32", "bfloat16"):
        expected = logits(1, folders[family], PIECES["all"], dtype)
        for size in range(2, 9):
            assert torch.equal(logits(size, folders[family], PIECES["seven"], dtype), expected), (
                f"{dtype}, {size} ranks"
            )


@pytest.mark.parametrize("pieces", PIECES)
def test_pieces_change_no_bit(folders: dict[str, Path], pieces: str) -> None:
    """Pieces of one token are decode steps: what an answer computes is what a prompt of the same tokens does."""
    for size in (1, 3):
        expected = logits(1, folders["llama3"], PIECES["all"])
        assert torch.equal(logits(size, folders["llama3"], PIECES[pieces]), expected)


def in_bf16(folder: Path, into: Path) -> Path:
    """Return a folder with the weights of another rounded to bf16."""
    shutil.copytree(folder, into)
    tensors = {name: tensor.bfloat16().float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, into / "model.safetensors", {"format": "pt"})
    return into


@pytest.mark.parametrize("family", [*FOLDERS, "odd_heads"])
def test_logits_are_right(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    expected = reference_logits(folders[family], PROMPT)
    assert (logits(2, folders[family], PIECES["seven"]) - expected).abs().max() <= 1e-5
    rounded = reference_logits(in_bf16(folders[family], tmp_path / "m"), PROMPT)
    error = (logits(1, folders[family], PIECES["all"], "bfloat16") - rounded).abs().mean() / rounded.abs().mean()
    assert error < 0.005  # keys and values have 8 bits


def in_company(runner: Runner) -> torch.Tensor:
    """Return the logits [2, V] of PROMPT's last two tokens, each in a step beside answers and pieces of prompts."""
    blocks = [[29, 3, 17, 8, 25], [1, 2], [30, 28, 26], [5, 6, 7, 9]]
    others = [PROMPT[::-1][:7], PROMPT[3:14], PROMPT[1:16]]
    rows = []
    first = [
        Chunk(PROMPT[:15], 0, blocks[0][:4], 1),
        *(Chunk(tokens, 0, own[: -(-len(tokens) // BLOCK)], 1) for tokens, own in zip(others, blocks[1:], strict=True)),
    ]
    runner.send(step := Step(0, first))
    runner.step(step)
    for p in (15, 16):
        company = [
            Chunk([9], 7 + p - 15, blocks[1] + [10] * (p - 15), 1),
            Chunk(PROMPT[p : p + 1], p, blocks[0][: p // BLOCK + 1], 1),
            Chunk([9], 11 + p - 15, (blocks[2] + [11])[: (11 + p - 15) // BLOCK + 1], 1),
            Chunk([4, 7, 7], 15, [*blocks[3], 12], 2),
        ]
        runner.send(step := Step(0, company if p == 15 else company[:3]))
        found = runner.step(step).logits
        assert found is not None
        rows.append(found[1])
    return torch.stack(rows)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_company_changes_no_bit(folders: dict[str, Path], size: int, dtype: str) -> None:
    def work(runner: Runner) -> torch.Tensor:
        runner.lead_load(load_message(folders["llama3"], dtype, deterministic=True))
        return in_company(runner)

    found = run_threads(size, lambda comm: lead(comm, work))[0]
    assert found is not None
    assert torch.equal(found, logits(1, folders["llama3"], PIECES["all"], dtype)[-2:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_is_the_same_in_any_company_cache_and_world(folders: dict[str, Path], dtype: str) -> None:
    folder = folders["llama3"]
    asked = generate(0, folder, PROMPT, sampling=SEEDED, max_tokens=20)
    others = [generate(i, folder, PROMPT[:i], max_tokens=15) for i in (2, 5, 9, 12)]
    again = generate(9, folder, PROMPT + PROMPT, sampling=SEEDED, max_tokens=4)
    roomy = EngineSettings(**{**vars(SETTINGS), "dtype": dtype})
    tight = EngineSettings(**{**vars(roomy), "cache_tokens": 40, "context_length": 40, "max_step_tokens": 5})
    alone = answers(1, [asked], roomy).tokens(0)
    assert len(set(alone)) > 8  # a text that could differ
    for size in (1, 3):
        assert answers(size, [*others, asked], roomy).tokens(0) == alone
        assert answers(size, [asked, *others], tight).tokens(0) == alone  # some are sent back and computed again
    one_by_one = EngineSettings(**{**vars(roomy), "max_running": 1})
    shared = answers(2, [generate(8, folder, PROMPT, max_tokens=1), asked, again], one_by_one)
    assert shared.tokens(0) == alone  # its beginning was in the cache
    assert shared.tokens(9) == answers(1, [again], roomy).tokens(9)
    undrafted = EngineSettings(**{**vars(roomy), "max_drafts": 0})
    looping = generate(0, folder, PROMPT[:5] * 6, sampling=Sampling(temperature=0.3, seed=3), max_tokens=40)
    assert answers(2, [looping], roomy).tokens(0) == answers(1, [looping], undrafted).tokens(0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_is_taken_up_again_from_its_own_tokens(folders: dict[str, Path], dtype: str) -> None:
    folder, settings = folders["odd_heads"], EngineSettings(**{**vars(SETTINGS), "dtype": dtype})
    whole = answers(1, [generate(0, folder, PROMPT, sampling=SEEDED, max_tokens=24)], settings).tokens(0)
    for size, count in ((1, 1), (2, 7), (5, 16), (1, 23)):
        rest = [generate(0, folder, PROMPT + whole[:count], sampling=SEEDED, max_tokens=24 - count)]
        assert whole[:count] + answers(size, rest, settings).tokens(0) == whole


def test_greedy_text_is_the_references(folders: dict[str, Path]) -> None:
    messages = [generate(1, folders["llama3"], PROMPT, sampling=Sampling(temperature=0.0), max_tokens=20)]
    assert answers(3, messages).tokens(1) == reference_greedy(folders["llama3"], PROMPT, 20)


def test_a_broken_sequence_harms_no_other(tmp_path: Path) -> None:
    """A token whose row of the table is not finite spoils the logits of its own sequence alone."""
    from safetensors.torch import load_file, save_file

    folder = write_checkpoint(tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][150, 3] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    sound = [token for token in PROMPT if token != 150]
    messages = [generate(1, folder, [150, 3], max_tokens=4), generate(2, folder, sound, sampling=SEEDED, max_tokens=4)]
    for size in (1, 3):
        recorder = answers(size, messages)
        assert recorder.last(1)["code"] == "internal"
        assert recorder.tokens(2) == answers(1, messages[1:]).tokens(2)


def test_it_is_refused_where_it_cannot_hold() -> None:
    assert isinstance(arithmetic(True, "none", "float32", 128, torch.device("cpu"), NATIVE), Exact)
    assert isinstance(arithmetic(False, "none", "int8", 128, torch.device("cuda"), NATIVE), Plain)
    with pytest.raises(ModelError, match=r"deterministic=true holds on CPUs only .* on cuda"):
        arithmetic(True, "none", "float32", 128, torch.device("cuda"), NATIVE)
    with pytest.raises(ModelError, match="cannot read cache_dtype=int8"):
        arithmetic(True, "none", "int8", 128, torch.device("cpu"), NATIVE)


def test_sums_over_ranks_keep_fp64() -> None:
    def work(comm: Communicator) -> torch.Tensor:
        return comm.all_reduce(torch.full((3,), 1 + comm.rank * 2.0**-40, dtype=torch.float64))

    for size in (1, 2, 5):
        for total in run_threads(size, work):
            assert total.dtype == torch.float64
            assert torch.equal(total, torch.full((3,), size + sum(range(size)) * 2.0**-40, dtype=torch.float64))


def test_without_it_the_same_batch_on_the_same_world_gives_the_same_text(folders: dict[str, Path]) -> None:
    plain = EngineSettings(**{**vars(SETTINGS), "deterministic": False})
    messages = [generate(i, folders["llama3"], PROMPT[: 5 + i], sampling=SEEDED, max_tokens=12) for i in range(4)]
    for size in (1, 3):
        first, second = answers(size, messages, plain), answers(size, messages, plain)
        assert [first.tokens(i) for i in range(4)] == [second.tokens(i) for i in range(4)]


def test_random_numbers_are_those_of_seed_and_position_in_any_batch() -> None:
    alone = uniforms([42], [17])[0]
    for company in range(1, 70):
        seeds, positions = list(range(company)), list(range(100, 100 + company))
        assert uniforms([*seeds, 42], [*positions, 17])[-1] == alone
