"""Measure runtimes in turns: each in a process of its own that stays loaded and works only when told.

A contestant's process calls `serve_turns`; whoever compares holds a `Worker` for each.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

_MARK = "turn: "  # begins the lines of the protocol; a runtime may print others
_END_S = 20.0

Times = list[list[float]]  # of each stream, when its tokens were there


@dataclass(frozen=True)
class Row:
    """So many streams, each of a prompt of `prompt` tokens that goes on by `tokens`."""

    name: str
    streams: int
    prompt: int
    tokens: int

    def prompts(self, seed: int, vocab_size: int) -> list[list[int]]:
        """Return random prompts, the same for all contestants of a turn."""
        draw = random.Random(seed)
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
    """Measure the rows that stdin names until it ends."""
    print(_MARK + json.dumps(contestant.facts), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        row = Row(**order["row"])
        prompts = row.prompts(order["seed"], contestant.vocab_size)
        began = time.perf_counter()
        found = rate(row, began, contestant.answer(prompts, row.tokens))
        print(_MARK + json.dumps(found), flush=True)


class Worker:
    """The process of one contestant, seen from outside; `facts` are what it told when it was ready."""

    def __init__(self, name: str, command: list[str], env: dict[str, str] | None = None) -> None:
        self.name = name
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._replies = self._process.stdin, self._process.stdout
        self.facts: dict[str, Any] = self._reply()

    def measure(self, row: Row, seed: int) -> float:
        """Return the tokens per second of one turn."""
        self._orders.write(json.dumps({"row": asdict(row), "seed": seed}) + "\n")
        self._orders.flush()
        return float(self._reply())

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            self._orders.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()

    def _reply(self) -> Any:
        """Return the next line of the protocol; raise RuntimeError where the process ends instead."""
        for line in self._replies:
            if line.startswith(_MARK):
                return json.loads(line.removeprefix(_MARK))
            print(f"{self.name}: {line.rstrip()}", file=sys.stderr)
        self.close()
        raise RuntimeError(f"{self.name} ended with status {self._process.returncode}; its messages are above")
