"""Measure steps of some models, one rank: `cost_points.py PLAN [key=value ...]`, under mpirun or without.

PLAN is JSON: {"folders": [...], "prompt": tokens, "streams": answers, "tokens": of each}. Rank 0 prints a line of JSON
for each model and kind of step: decode of one answer, of several together, and a prompt in one step.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from itertools import pairwise
from statistics import median
from typing import Any

from contestant import MARK
from peer_ollampi import SETTINGS, Client, run_client

from ollampi.launcher import assemble
from ollampi.launcher.config import compose_config
from ollampi.mpiruntime.ending import END
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.lifetime import die_with
from ollampi.mpiruntime.memory import BITS
from ollampi.mpiruntime.mpi import Mpi, launched_size
from ollampi.mpiruntime.request import ModelRef

_SHORT = 16  # tokens of a prompt before an answer
_SKIPPED = 3  # steps at the begin of an answer, and a prompt at first, which warm up


class Steps(Client):
    """Asks for answers and prompts of each model in turn, and prints what their steps took."""

    plan: dict[str, Any]
    refs: list[ModelRef]
    few: float

    def run(self) -> None:
        """Measure all models, then end the engine."""
        try:
            for number, ref in enumerate(self.refs):
                self.model = ref
                for kind, rows, seconds in self._kinds():
                    found = {"shape": number, "kind": kind, "rows": rows, "seconds": seconds, "few": self.few}
                    print(MARK + json.dumps(found), flush=True)
        finally:
            self.comm.notify(END)

    def _kinds(self) -> Any:
        """Yield the kinds of steps of a model, with their rows and seconds."""
        prompt, streams, tokens = self.plan["prompt"], self.plan["streams"], self.plan["tokens"]
        for rows in (1, streams):
            self.answer(self._prompts(rows, _SHORT), 2)
            yield "decode", rows, self._decode(rows, tokens)
        yield "prefill", prompt, median([self._prefill(prompt) for _ in range(4)][1:])

    def _decode(self, rows: int, tokens: int) -> float:
        """Return the median time between tokens while all answers run."""
        times = self.answer(self._prompts(rows, _SHORT), tokens + _SKIPPED)
        first, last = max(stream[_SKIPPED - 1] for stream in times), min(stream[-1] for stream in times)
        steps = [t for t in times[0] if first <= t <= last]
        return median(b - a for a, b in pairwise(steps))

    def _prefill(self, tokens: int) -> float:
        """Return the time from a request to its first token."""
        prompts = self._prompts(1, tokens)
        began = time.perf_counter()
        return self.answer(prompts, 1)[0][0] - began

    def _prompts(self, count: int, tokens: int) -> list[list[int]]:
        """Return random prompts, of which no cache knows the beginning."""
        return [[random.randrange(self.vocab_size) for _ in range(tokens)] for _ in range(count)]


def main() -> None:
    """Measure on rank 0, follow on the others."""
    plan = json.loads(sys.argv[1])
    if launched_size(os.environ) is not None:
        die_with(os.getppid())
    comm = assemble.communicator()
    config = compose_config([*SETTINGS, *sys.argv[2:]], {})
    runner, exchange = assemble.runner(comm, config)
    if comm.rank:
        runner.follow()
    else:
        print(exchange, file=sys.stderr)
        models = Models(runner, config.engine)
        refs = [ModelRef(f"m{number}:latest", folder) for number, folder in enumerate(plan["folders"])]
        client = Steps(comm, models.pin(refs[0]))
        client.plan, client.refs = plan, refs
        name = config.quantize if config.quantize in BITS else "bfloat16"  # of large_model
        client.few = runner.choice.most_native(name)
        run_client(runner, models, client)
    if isinstance(comm, Mpi):
        comm.finish()


if __name__ == "__main__":
    main()
