"""A rank whose weights, products or sums are not what they were is found, and no other one is blamed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import FAMILIES, PROMPT, write_checkpoint
from support.spoiling import Spoilt, decoder_of, examined, faults_of, findings_of, flip, raw_bytes
from support.streaming import five_layers
from support.worlds import load_here, load_message, logits_in_pieces
from torch import Tensor

from ollampi.mpiruntime import weight_check
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.compressed import Compressed
from ollampi.mpiruntime.decoder import Decoder
from ollampi.mpiruntime.exchange_plan import Choice, always
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.self_test import Finding, judged
from ollampi.mpiruntime.step import Examine, Unload, decode, encode
from ollampi.mpiruntime.thread_world import ThreadCommunicator, run_threads
from ollampi.mpiruntime.world import survey

FORMATS: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
    {"quantize": "q8"},
    {"quantize": "q4"},
    {"deterministic": True},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "good", head_dim=32)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_check, "PIECE_BYTES", 4096)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("fields", FORMATS, ids=str)
def test_one_flipped_bit_of_one_rank_is_found_and_laid_to_it(
    folder: Path, size: int, fields: dict[str, Any], small_pieces: None
) -> None:
    def spoil(decoder: Decoder) -> None:
        raw = next(raw_bytes(decoder.layers[1].parts()[1].tensors()[0]))
        flip(raw, len(raw) // 2)

    found = run_threads(size, lambda comm: examined(comm, folder, spoil, size - 1, **fields))
    for before, after in found:
        assert before == [[]] * size
        assert after[:-1] == [[]] * (size - 1)
        assert after[-1] == ["the weights of layer 1 are not what was loaded: bad memory?"]


@pytest.mark.parametrize("family", ["llama3", "tied", "biases", "mixtral"])
def test_no_bit_of_any_weight_may_flip(tmp_path: Path, family: str, small_pieces: None) -> None:
    folder = write_checkpoint(tmp_path / family, **FAMILIES[family])
    runner_of: list[Runner] = []

    def work(comm: Communicator) -> None:
        runner = Runner(comm, survey(comm))
        load_here(runner, load_message(folder))
        assert faults_of(runner) == [[]]
        runner_of.append(runner)
        for part, tensors in decoder_of(runner).lasting():
            for raw in (each for tensor in tensors for each in raw_bytes(tensor)):
                for at, bit in ((0, 0), (len(raw) - 1, 7)):
                    flip(raw, at, bit)
                    assert faults_of(runner) == [[f"the weights of {part} are not what was loaded: bad memory?"]]
                    flip(raw, at, bit)
        assert faults_of(runner) == [[]]  # what is mended is no fault

    run_threads(1, work)
    decoder = decoder_of(runner_of[0])
    assert sum(t.nbytes for _, tensors in decoder.lasting() for t in tensors) == decoder.size_bytes


@pytest.mark.parametrize("size", [1, 3])
def test_a_rank_that_multiplies_otherwise_than_at_first_is_found(folder: Path, size: int) -> None:
    def spoil(decoder: Decoder) -> None:
        linear = decoder.arithmetic.linear
        decoder.arithmetic.linear = lambda x, weight, bias=None: linear(x, weight, bias) * 1.001  # type: ignore[method-assign]

    for before, after in run_threads(size, lambda comm: examined(comm, folder, spoil, 0)):
        assert before == [[]] * size
        assert after[1:] == [[]] * (size - 1)
        assert "layer 0 is multiplied otherwise than at first: a bad processor?" in after[0]


def test_a_single_slip_is_no_fault(folder: Path) -> None:
    def spoil(decoder: Decoder) -> None:
        linear, slips = decoder.arithmetic.linear, [2.0]
        decoder.arithmetic.linear = lambda x, w, bias=None: linear(x, w, bias) * (slips.pop() if slips else 1.0)  # type: ignore[method-assign]

    assert run_threads(1, lambda comm: examined(comm, folder, spoil, 0)) == [([[]], [[]])]


def test_products_that_are_never_the_same_are_not_compared(folder: Path) -> None:
    def work(comm: Communicator) -> list[list[str]]:
        runner = Runner(comm, survey(comm))
        load_here(runner, load_message(folder))
        arithmetic = decoder_of(runner).arithmetic
        linear, turn = arithmetic.linear, iter(range(10**6))
        arithmetic.linear = lambda x, w, bias=None: linear(x, w, bias) + next(turn)  # type: ignore[method-assign]
        return faults_of(runner)

    assert run_threads(1, work) == [[[]]]


def more(x: Tensor) -> Tensor:
    return x * 1.5


def spoilt_sums(comm: Communicator, folder: Path, rank: int, before: bool, exact: bool) -> list[list[str]]:
    bad = Spoilt(comm, more if before else lambda x: x, (lambda x: x) if before else more)
    mine = bad if comm.rank == rank else comm
    runner = Runner(mine if exact else comm, survey(comm), sums=comm if exact else mine)
    return judged(findings_of(runner, 0.0))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("size", "rank"), [(3, 0), (3, 2), (5, 1)])
def test_a_rank_that_adds_something_else_is_found(folder: Path, size: int, rank: int, exact: bool) -> None:
    for faults in run_threads(size, lambda comm: spoilt_sums(comm, folder, rank, True, exact)):
        assert faults == [["its part of a sum over ranks comes out wrong"] if r == rank else [] for r in range(size)]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("size", "rank"), [(2, 1), (3, 0), (5, 4)])
def test_a_rank_that_gets_something_else_is_found(folder: Path, size: int, rank: int, exact: bool) -> None:
    for faults in run_threads(size, lambda comm: spoilt_sums(comm, folder, rank, False, exact)):
        assert faults == [["a sum over ranks comes out wrong here"] if r == rank else [] for r in range(size)]


def test_a_sum_that_is_no_number_is_wrong() -> None:
    def work(comm: Communicator) -> list[list[str]]:
        bad = Spoilt(comm, lambda x: x * torch.nan, lambda x: x)
        return judged(findings_of(Runner(bad, survey(comm)), 0.0))

    assert run_threads(1, work) == [[["its part of a sum over ranks comes out wrong"]]]


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("way", ["one_step", "scattered"])
@pytest.mark.parametrize("size", [2, 3, 9])
def test_sums_in_few_bits_are_no_fault(size: int, way: str, level: int) -> None:
    def work(comm: ThreadCommunicator) -> list[list[str]]:
        link = comm.link(range(size))
        assert link is not None
        return judged(
            findings_of(Runner(comm, survey(comm), sums=Compressed(comm, link, always(Choice(way, level)))), 0.0)
        )

    assert run_threads(size, work) == [[[]] * size] * size


def test_blame() -> None:
    def of(*wrong: list[int]) -> list[list[str]]:
        return judged([Finding([], ranks, False) for ranks in wrong])

    part, here = ["its part of a sum over ranks comes out wrong"], ["a sum over ranks comes out wrong here"]
    assert of([], [], []) == [[], [], []]
    assert of([1], [1], []) == [[], part, []]
    assert of([1], [0, 1], [1]) == [[], [*part, *here], []]
    assert of([0, 1, 2], [], []) == [here, [], []]
    assert of([0], [0]) == [part, []]


def test_a_look_takes_some_pieces_and_the_next_one_goes_on(folder: Path, small_pieces: None) -> None:
    """With no time left each look takes one piece: as many looks as there are pieces know them all."""

    def work(comm: Communicator) -> None:
        runner = Runner(comm, survey(comm))
        load_here(runner, load_message(folder))
        decoder = decoder_of(runner)
        count = len(list(weight_check.pieces_of(decoder)))
        assert count > 20
        assert [findings_of(runner, 0.0)[0].learning for _ in range(count)] == [True] * (count - 1) + [False]
        flip(next(raw_bytes(decoder.layers[1].parts()[1].tensors()[0])), 5)
        found = [findings_of(runner, 0.0)[0].faults for _ in range(count)]
        first = next(i for i, faults in enumerate(found) if faults)
        assert 0 < first < count - 1
        assert all(faults == found[-1] for faults in found[first:])  # it is looked at in every later test
        assert [faults for faults in found[:first] if faults] == []

    run_threads(1, work)


def test_an_unloaded_model_is_let_go(folder: Path) -> None:
    def work(comm: Communicator) -> None:
        runner = Runner(comm, survey(comm))
        load_here(runner, load_message(folder))
        flip(next(raw_bytes(decoder_of(runner).head.tensors()[0])), 0)
        assert faults_of(runner) == [[]] * comm.size
        flip(next(raw_bytes(decoder_of(runner).head.tensors()[0])), 0)
        assert faults_of(runner) != [[]] * comm.size
        held = weakref.ref(decoder_of(runner))
        runner.unload(Unload(0))
        while runner.background.busy:  # it is freed beside the steps
            runner.background.look()
        gc.collect()
        assert held() is None
        assert faults_of(runner) == [[]] * comm.size
        load_here(runner, load_message(folder))
        assert faults_of(runner) == [[]] * comm.size

    run_threads(2, work)


def test_streamed_layers_are_left_out(tmp_path: Path) -> None:
    folder = five_layers(tmp_path / "five")

    def work(comm: Communicator) -> None:
        runner = Runner(comm, survey(comm))
        load_here(runner, load_message(folder, num_streamed=4, shard_cache=str(tmp_path / "cache"), prefetch_factor=1))
        parts = [part for part, _ in decoder_of(runner).lasting()]
        assert len([part for part in parts if part.startswith("layer ")]) == 1
        assert faults_of(runner) == [[]]
        if comm.rank == 0:
            assert logits_in_pieces(runner, PROMPT, [9, 5, 1, 1, 1]).isfinite().all()
        assert faults_of(runner) == [[]]
        runner.unload(Unload(0))

    run_threads(1, work)


def test_the_message_travels() -> None:
    assert decode(encode(Examine(0.25))) == Examine(0.25)


@pytest.mark.parametrize("damage", [lambda raw: flip(raw, 3, 1), lambda raw: raw.zero_()])
def test_answers_are_spoilt_by_what_is_found(folder: Path, damage: Callable[[Tensor], Any]) -> None:
    """The weights that are looked at are those that a step multiplies by."""

    def work(comm: Communicator) -> None:
        runner = Runner(comm, survey(comm))
        load_here(runner, load_message(folder))
        before = logits_in_pieces(runner, PROMPT, [17])
        assert faults_of(runner) == [[]]
        damage(next(raw_bytes(decoder_of(runner).layers[0].parts()[1].tensors()[0])))
        assert not torch.equal(logits_in_pieces(runner, PROMPT, [17]), before)
        assert faults_of(runner) != [[]]

    run_threads(1, work)


@pytest.mark.parametrize("exact", [True, False])
def test_a_rank_whose_link_in_one_group_is_bad_is_found(folder: Path, exact: bool) -> None:
    """The sums of all ranks are right, and those of groups that overlap with the bad one."""
    groups = [[0, 1], [0, 1, 3], [1, 2], [1, 2, 3]]

    def work(comm: Communicator) -> list[list[str]]:
        runner = Runner(comm, survey(comm))
        for number, ranks in enumerate(groups):
            if comm.rank in ranks:
                load_here(runner, replace(load_message(folder), model=number, ranks=ranks))
        assert judged(runner.examine(Examine(0.0, groups))) == [[]] * 4
        if comm.rank == 3:
            group = runner.groups.of([1, 2, 3])
            bad = Spoilt(group.comm, more, lambda x: x)
            group.comm, group.sums = (bad, group.sums) if exact else (group.comm, bad)
        if comm.rank == 0:
            group = runner.groups.of([0, 1])
            group.sums = Spoilt(group.sums, lambda x: x, more)
        return judged(runner.examine(Examine(0.0, groups)))

    here, part = "a sum over ranks 0 1 comes out wrong here", "its part of a sum over ranks 1 2 3 comes out wrong"
    for faults in run_threads(4, work):
        assert faults == [[here], [], [], [part]]


def test_what_travels_of_a_test_in_a_group() -> None:
    message = Examine(0.5, [[0, 2], [1, 2]], [[3, 7, 9]])
    assert decode(encode(message)) == message
