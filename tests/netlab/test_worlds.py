"""Ranks on several hosts: the same text as on one, and as many bytes between them as the formula says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import PROMPT, reference_greedy, reference_logits, write_checkpoint
from support.netlab import lab
from support.netlab_runs import run_ranks

from ollampi.kernels.codec import num_bytes

SPREADS = [[2, 1], [1, 2, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("ranks", SPREADS, ids=str)
def test_text_and_logits_over_hosts_equal_the_reference(tmp_path: Path, ranks: list[int]) -> None:
    folder, out = write_checkpoint(tmp_path / "model"), tmp_path / "logits"
    with lab(len(ranks), 1000) as net:
        before = net.counted()
        told = run_ranks(net, ranks, "over", "text", str(folder), str(out))
        assert all(after[0] > b[0] + 10_000 for b, after in zip(before, net.counted(), strict=True))
    assert str(reference_greedy(folder, PROMPT, 9)) in told
    found = torch.frombuffer(bytearray(out.read_bytes()), dtype=torch.float32).view(len(PROMPT), -1)
    assert (found - reference_logits(folder, PROMPT)).abs().max() <= 1e-4


def test_hosts_with_several_ranks_send_what_one_rank_each_would() -> None:
    """8 MiB twice: sums of two hosts' leaders; a ring of 4 ranks over MPI would send half as much again."""
    count, calls = 1 << 21, 4
    with lab(2, 1000) as net:
        assert "(True, 1)" in run_ranks(net, [1, 3], "over", "sums", str(count), str(calls))
        for sent, received in net.counted():
            moved = 4 * count * (calls + 1)
            assert 0.95 * 2 * moved <= sent + received <= 1.06 * 2 * moved + 2_000_000


@pytest.mark.parametrize("hosts", [2, 3, 4])
def test_large_sums_in_shares_send_and_receive_as_many_bytes_as_the_formula_says(hosts: int) -> None:
    """4 (N-1)/N x d x b, a twentieth more at the most; Open MPI's control messages are nothing beside 8 MiB."""
    count, levels = 1 << 21, [0, 2, 4]
    with lab(hosts, 0, 20) as net:
        told = run_ranks(net, [1] * hosts, ",".join(map(str, levels)), "moved", str(count), "4").splitlines()
    for level, found in zip(levels, told[-len(levels) :], strict=True):
        formula = 4 * (hosts - 1) / hosts * num_bytes(level, count)
        assert 0.99 * formula <= int(found) <= 1.05 * formula


@pytest.mark.parametrize("hosts", [2, 3, 4])
def test_what_the_start_chooses_for_sums_of_prompts_sends_no_more_bytes_than_the_formula_says(hosts: int) -> None:
    """Sums of 64 tokens of width 1024, of 512, and of 2048: the way of the fewest bytes, whatever the noise."""
    counts, levels = [1 << 16, 1 << 19, 1 << 21], [0, 2]
    with lab(hosts, 1000, 20) as net:
        ways, sums = ",".join(f"own{level}" for level in levels), ",".join(map(str, counts))
        told = run_ranks(net, [1] * hosts, ways, "moved", sums, "3").splitlines()
    for level, line in zip(levels, told[-len(levels) :], strict=True):
        for count, found in zip(counts, line.split(), strict=True):
            formula = 4 * (hosts - 1) / hosts * num_bytes(level, count)
            assert 0.99 * formula <= int(found) <= 1.05 * formula
