"""What is measured of a runtime, and how its process is told to: `worker.py` is the other side."""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import dataclass
from typing import Any, Protocol

MARK = "turn: "  # begins the lines of the protocol; a runtime may print others

Times = list[list[float]]  # of each stream, when its tokens were there


@dataclass(frozen=True)
class Row:
    """So many streams, each of a prompt of `prompt` tokens that goes on by `tokens`."""

    name: str
    streams: int
    prompt: int
    tokens: int

    def prompts(self, seed: int, vocab_size: int) -> list[list[int]]:
        """Return random prompts, the same for all contestants of a turn; no two begin alike, caches are of no use."""
        draw = random.Random(f"{self} {seed}")
        return [[draw.randrange(vocab_size) for _ in range(self.prompt)] for _ in range(self.streams)]


class Contestant(Protocol):
    """A runtime with a model of vocab_size tokens; facts are what its side of the table tells."""

    vocab_size: int
    facts: dict[str, Any]

    def answer(self, prompts: list[list[int]], tokens: int) -> Times:
        """Continue all prompts at once by so many likeliest tokens each; return when each token was there."""


def rate(row: Row, began: float, times: Times) -> float:
    """Return tokens per second: of the prompts where a row asks for one token, else of what was answered together.

    Answers count from the moment when all streams have their first token until one has its last.
    """
    if row.tokens == 1:
        return row.streams * row.prompt / (max(stream[0] for stream in times) - began)
    first, last = max(stream[0] for stream in times), min(stream[-1] for stream in times)
    return sum(first < moment <= last for stream in times for moment in stream) / (last - first)


def serve_turns(contestant: Contestant) -> None:
    """Measure the rows that stdin names until it says null or ends; mpirun does not pass on its end."""
    print(MARK + json.dumps(contestant.facts), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order is None:
            break
        row = Row(**order["row"])
        prompts = row.prompts(order["seed"], contestant.vocab_size)
        began = time.perf_counter()
        found = rate(row, began, contestant.answer(prompts, row.tokens))
        print(MARK + json.dumps(found), flush=True)
