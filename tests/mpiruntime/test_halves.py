"""Steps in two halves: the same results, the same order of collectives on all ranks, arithmetic while sums are made."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import ENCODERS, FAMILIES, PROMPT, reference_logits, write_checkpoint
from support.worlds import BLOCK, lead, load_message, logits_in_pieces
from torch import Tensor

from ollampi.mpiruntime.attention import Attention
from ollampi.mpiruntime.communicator import Around, Communicator
from ollampi.mpiruntime.decoder import Output
from ollampi.mpiruntime.halves import halves
from ollampi.mpiruntime.overlap import Halving
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Chunk, Step, Stop, Unload, decode, encode
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import RankFacts, survey

MODELS = {name: FAMILIES[name] for name in ("llama3", "mixtral", "gemma2", "cohere", "mistral")} | ENCODERS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_checkpoint(root / name, **changes) for name, changes in MODELS.items()}


class Noting(Around):
    """The communicator `inner`, which notes when sums begin and when they are waited for."""

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        self._inner = inner
        self.gather = inner.gather
        self.share_rows = inner.share_rows  # type: ignore[method-assign]  # the embedding's, before all layers
        self.log: list[str] = []
        self._started = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x [...]."""
        self.log.append("at once")
        return self._inner.all_reduce(x)

    def all_reduce_later(self, x: Tensor) -> Callable[[], Tensor]:
        """Return what waits for the sum of x [...]; nothing is exchanged before, as if that took long."""
        self._started += 1
        number, kept = self._started, x.clone()
        self.log.append(f"start {number}")

        def wait() -> Tensor:
            """Return the sum."""
            assert torch.equal(x, kept), "changed while it was on its way"
            self.log.append(f"wait {number}")
            return self._inner.all_reduce(kept)

        return wait


def loaded(folder: Path, **fields: object) -> Callable[[Runner], Tensor]:
    """Return what loads a folder and returns the logits of the prompt."""

    def work(runner: Runner) -> Tensor:
        runner.lead_load(load_message(folder, **fields))
        return logits_in_pieces(runner, PROMPT, [9, 1, 7])

    return work


def test_halves_tile_the_step() -> None:
    draw = random.Random(0)
    for _ in range(200):
        chunks = []
        for _ in range(draw.randint(1, 5)):
            size, start = draw.randint(1, 9), draw.randint(0, 5)
            blocks = list(range(draw.randint(0, 9), 20))
            pooled = draw.randint(0, size)
            chunks.append(
                Chunk(list(range(size)), start, blocks, draw.randint(0, size), pooled, draw.randint(0, size - pooled))
            )
        step = Step(3, chunks)
        total = sum(len(chunk.tokens) for chunk in chunks)
        for both_ways in (False, True):
            parts = halves(step, both_ways)
            flat = [c for part in parts for c in part.chunks]
            assert [t for c in flat for t in c.tokens] == [t for c in chunks for t in c.tokens]
            assert [p for c in flat for p in range(c.start, c.start + len(c.tokens))] == [
                p for c in chunks for p in range(c.start, c.start + len(c.tokens))
            ]
            wanted = [t >= len(c.tokens) - c.num_logits for c in flat for t in range(len(c.tokens))]
            assert wanted == [t >= len(c.tokens) - c.num_logits for c in chunks for t in range(len(c.tokens))]
            if both_ways:
                assert [len(c.tokens) for c in flat] == [len(c.tokens) for c in chunks]
            elif total > 1:
                sizes = [sum(len(c.tokens) for c in part.chunks) for part in parts]
                assert sizes == [total // 2, total - total // 2]


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() & MODELS.keys()))
def test_logits_are_the_reference_whatever_is_under_way(folders: dict[str, Path], family: str) -> None:
    expected = reference_logits(folders[family], PROMPT)
    for size in (1, 2, 3):
        found = run_threads(
            size, lambda comm: lead(comm, loaded(folders[family]), sums=Noting(comm), overlap="always")
        )[0]
        assert found is not None
        assert (found - expected).abs().max() <= 1e-4, f"{family} on {size} ranks"


@pytest.mark.parametrize("ranks", [[1], [1, 2], [1, 2, 3]])
def test_groups_without_rank_0_compute_in_halves(folders: dict[str, Path], ranks: list[int]) -> None:
    """Rank 0 decides, and learns how long either way took; the logits are the reference."""
    seen: dict[int, list[bool]] = {rank: [] for rank in range(4)}
    learned: list[tuple[int, bool]] = []

    def work(comm: Communicator) -> Tensor | None:
        runner = Runner(comm, survey(comm), overlap="always")
        plain = runner._compute

        def noting(step: Step, *watch: Any) -> Output:
            seen[comm.rank].append(step.halved)
            return plain(step, *watch)

        runner._compute = noting  # type: ignore[method-assign]
        if comm.rank:
            runner.follow()
            return None
        runner.lead_load(load_message(folders["llama3"], ranks=ranks))
        halving = runner._halving[0]
        halving.observe = lambda n, halved, s: learned.append((n, halved)) if s > 0 else None  # type: ignore[method-assign]
        logits = logits_in_pieces(runner, PROMPT, [9, 1, 7])
        runner.lead(Unload(0))
        assert runner._halving == {}
        runner.lead(Stop())
        return logits

    found = run_threads(4, work)[0]
    assert found is not None
    assert (found - reference_logits(folders["llama3"], PROMPT)).abs().max() <= 1e-4
    ways = [len(ranks) > 1, False, len(ranks) > 1]  # one token, and a rank that is alone, are never cut
    assert seen == {rank: ways if rank in ranks else [] for rank in range(4)}
    assert learned == list(zip([9, 1, 7], ways, strict=True))


def test_deterministic_keeps_its_bits(folders: dict[str, Path]) -> None:
    folder = folders["llama3"]
    whole = run_threads(1, lambda comm: lead(comm, loaded(folder, deterministic=True)))[0]
    assert whole is not None
    for size in (1, 3):
        found = run_threads(size, lambda comm: lead(comm, loaded(folder, deterministic=True), overlap="always"))[0]
        assert found is not None
        assert torch.equal(found, whole)


@pytest.mark.parametrize("family", ["llama3", "bert"])
def test_pools_and_several_sequences_are_as_without(folders: dict[str, Path], family: str) -> None:
    texts = [PROMPT[:7], PROMPT[3:16], PROMPT[2:5]]
    chunks, block = [], 0
    for tokens in texts:
        needed = -(-len(tokens) // BLOCK)
        logits = 2 if family == "llama3" else 0
        chunks.append(Chunk(tokens, 0, list(range(block, block + needed)), logits, len(tokens) - 1, 1))
        block += needed

    def work(runner: Runner) -> Tensor:
        runner.lead_load(load_message(folders[family]))
        step = Step(0, chunks)
        runner.send(step)
        output = runner.step(step)
        assert output.pooled is not None
        parts = [output.pooled.flatten(), *([] if output.logits is None else [output.logits.flatten().double()])]
        return torch.cat(parts)

    for size in (1, 2):
        whole = run_threads(size, lambda comm: lead(comm, work))[0]
        found = run_threads(size, lambda comm: lead(comm, work, overlap="always"))[0]
        assert whole is not None
        assert found is not None
        assert found.shape == whole.shape
        assert (found - whole).abs().max() <= 1e-4


def test_one_half_is_computed_while_the_other_is_summed(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs: dict[int, list[str]] = {}
    computed = Attention.__call__

    def work(comm: Communicator) -> Tensor | None:
        noting = Noting(comm)
        logs[comm.rank] = noting.log
        return lead(comm, loaded(folders["llama3"]), sums=noting, overlap="always")

    def noted(self: Attention, x: Tensor, mixing: object) -> Tensor:
        """Note that attention is computed, then compute it."""
        logs[self.output.comm.rank].append("attention")
        return computed(self, x, mixing)  # type: ignore[arg-type]

    monkeypatch.setattr(Attention, "__call__", noted)
    run_threads(3, work)
    first = logs[0][: logs[0].index("wait 1") + 1]
    assert first == ["attention", "start 1", "attention", "start 2", "wait 1"]
    for log in logs.values():
        assert log == logs[0]
    waits = [int(line.removeprefix("wait ")) for line in logs[0] if line.startswith("wait")]
    assert waits == sorted(waits)  # the oldest first


def facts_of(hosts: int) -> list[RankFacts]:
    """Return the facts of two ranks on so many hosts."""
    return [RankFacts(r, f"h{r % hosts}", 0, 1, [0], 1, 1, 1 << 30) for r in range(2)]


@pytest.mark.parametrize(("wanted", "hosts"), [("never", 2), ("auto", 1)])
def test_some_worlds_never_cut(wanted: str, hosts: int) -> None:
    halving = Halving(wanted, facts_of(hosts))
    for tokens in (1, 64, 512):
        halving.observe(tokens, True, 0.0)
        assert not halving.cuts(tokens)


def test_always_cuts_what_can_be_cut() -> None:
    assert [Halving("always", facts_of(1)).cuts(tokens) for tokens in (1, 2, 512)] == [False, True, True]
    assert not Halving("always", facts_of(1)[:1]).cuts(512)


@pytest.mark.parametrize("faster", [False, True])
def test_auto_takes_the_faster_way_and_looks_again(faster: bool) -> None:
    halving = Halving("auto", facts_of(2))
    ways = []
    for _ in range(100):
        ways.append(halving.cuts(512))
        halving.observe(512, ways[-1], 1.0 if ways[-1] == faster else 2.0)
    assert ways[:8] == [False, True] * 4
    assert ways[8:].count(not faster) == 100 // 32
    assert not halving.cuts(63)
    assert not halving.cuts(300)  # another size, which is tried anew
    for _ in range(200):  # the network changes
        cut = halving.cuts(512)
        halving.observe(512, cut, 3.0 if cut == faster else 2.0)
    assert halving.cuts(512) != faster


def test_a_message_says_whether_a_step_is_halved() -> None:
    for halved in (False, True):
        step = Step(3, [Chunk([1, 2], 0, [5], 1)], halved)
        assert decode(encode(step)) == step
