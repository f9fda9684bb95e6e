"""What benchmarks/peers.py computes from the times of its turns; nothing is measured here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from contestant import Row, rate
from peers import pairs, ratio, table
from support.servers import wait_until
from worker import Worker

from ollampi.mpiruntime.gguf_tensors import interleaved

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")

CONTESTANT = """
import sys, time
sys.path.insert(0, {folder!r})
from contestant import serve_turns

class Clockwork:
    vocab_size, facts = 7, {{"read_bytes": 3}}

    def answer(self, prompts, tokens):
        assert [len(prompt) for prompt in prompts] == [5] * 2 and max(map(max, prompts)) < 7
        print("a runtime's own line")
        return [[float(number) for number in range(tokens)] for _ in prompts]

serve_turns(Clockwork())
"""


def test_a_prompt_counts_until_its_first_token() -> None:
    assert rate(Row("", 2, 100, 1), 10.0, [[12.0], [14.0]]) == 200 / 4


def test_answers_count_while_all_streams_run() -> None:
    times = [[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]]
    assert rate(Row("", 2, 1, 4), 0.0, times) == 4 / 2  # from 2 to 4: two tokens of each


def test_a_row_has_the_same_prompts_for_everyone() -> None:
    row = Row("", 3, 8, 1)
    assert row.prompts(1, 50) == row.prompts(1, 50) != row.prompts(2, 50)
    assert row.prompts(1, 50)[0] != Row("another", 3, 8, 1).prompts(1, 50)[0]


def test_ratios_are_taken_within_a_round() -> None:
    figures = {("row", "a"): [10.0, 1.0, 9.0], ("row", "b"): [5.0, 2.0, 3.0]}
    assert ratio(figures, "row", "a", "b") == "2.00"  # of 2, 0.5 and 3
    text = table(figures, [Row("row", 1, 1, 2)], ["a", "b"], ["a"])
    assert text.splitlines()[2:] == ["| a | 9.0 |", "| b | 3.0 |", "| a / b | 2.00 |"]


def test_ranks_are_compared_with_fewer_ranks_and_with_all_peers() -> None:
    assert pairs(["1", "2", "x"], ["1", "2"]) == [("2", "1"), ("1", "x"), ("2", "x")]


def state(worker: Worker) -> str:
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_contestant_in_its_process_takes_turns(tmp_path: Path) -> None:
    program = tmp_path / "clockwork.py"
    program.write_text(CONTESTANT.format(folder=BENCHMARKS))
    worker = Worker("clockwork", [sys.executable, str(program)])
    try:
        assert worker.facts == {"read_bytes": 3}
        for seed in range(2):
            wait_until(lambda: state(worker) == "T", 10, "the process to be stopped")
            assert worker.measure(Row("", 2, 5, 4), seed) == 2.0
    finally:
        worker.close()


def test_a_contestant_that_ends_is_named() -> None:
    with pytest.raises(RuntimeError, match="gone ended with status 3"):
        Worker("gone", [sys.executable, "-c", "raise SystemExit(3)"])


def test_the_export_brings_together_what_is_turned_together() -> None:
    rows = np.arange(2 * 6, dtype=np.float32)[:, None]  # two heads of six rows
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
