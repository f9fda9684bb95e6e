"""Models on groups of ranks of any world: what each of them computes must be what it computes alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Chunk, Step, Unload
from support.worlds import BLOCK, load_message


@dataclass
class Reading:
    """A text that a model on some ranks reads token by token; rows: the logits so far."""

    number: int
    tokens: list[int]
    rows: list[torch.Tensor]

    @property
    def over(self) -> bool:
        """Return whether all tokens were read."""
        return len(self.rows) == len(self.tokens)

    def send(self, runner: Runner, padding: int = 0) -> Step:
        """Send the step of the next token; padding: entries of its block table that nobody needs."""
        at = len(self.rows)
        step = Step(self.number, [Chunk([self.tokens[at]], at, [*range(at // BLOCK + 1), *[0] * padding], 1)])
        runner.send(step)
        return step

    def take(self, runner: Runner, step: Step) -> None:
        """Take what the step brought."""
        logits = runner.step(step).logits
        assert logits is not None
        self.rows.append(logits)


def load_on(runner: Runner, number: int, folder: Path, ranks: Sequence[int], **fields: Any) -> list[int]:
    """Load a folder on some ranks; return the world's numbers of those that hold it. fields: others of the message."""
    load = replace(load_message(folder), model=number, ranks=list(ranks), name=f"m{number}", **fields)
    return [report.rank for report in runner.lead_load(load)]


def read_together(runner: Runner, readings: list[Reading], seed: int) -> None:
    """Have all texts read, steps of groups without rank 0 under way at the same time; which comes next is random."""
    draw = random.Random(seed)
    under_way: list[tuple[Reading, Step]] = []
    while under_way or any(not reading.over for reading in readings):
        busy = [reading for reading, _ in under_way]
        free = [reading for reading in readings if not reading.over and reading not in busy]
        draw.shuffle(free)
        for reading in free:
            step = reading.send(runner)
            if runner.ready(reading.number):
                reading.take(runner, step)
            else:
                under_way.append((reading, step))
        if under_way:
            reading, step = under_way.pop(draw.randrange(len(under_way)))
            reading.take(runner, step)


def unload(runner: Runner, number: int) -> None:
    """Unload a model."""
    runner.lead(Unload(number))
