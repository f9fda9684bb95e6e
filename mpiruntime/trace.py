"""Record when steps and their parts began and ended, and write it as a Chrome trace, which Perfetto opens.

process    rank R (host)
lane 1     step > plan, draft, send, forward, sample, deliver   rank 0 only
lane 2     forward > all_reduce, gather                         every rank
counters   running and waiting sequences, tokens in the step    rank 0 only, for each model
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import ConfigError, quoted
from ollampi.mpiruntime.world import RankFacts

KEPT_STEPS, KEPT_EXCHANGES = 5_000, 20_000  # of each rank, the latest
_PROCESS, _PHASES, _FORWARD = 0, 1, 2  # lanes
_CLOCK_ROUNDS = 9

Part = tuple[str, float, float]  # name, begin, end


class Trace:
    """What one rank did last, by its time.perf_counter(); the path is that of the file that rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zero = time.perf_counter()
        self._steps: deque[tuple[str, list[Part], int, int]] = deque(maxlen=KEPT_STEPS)
        self._forwards: deque[tuple[str, float, float, int, float]] = deque(maxlen=KEPT_STEPS)
        self._exchanges: deque[tuple[str, float, float, int]] = deque(maxlen=KEPT_EXCHANGES)

    def step(self, model: str, parts: list[Part], running: int, waiting: int) -> None:
        """Record a step of rank 0 and how many sequences there were after it."""
        self._steps.append((model, parts, running, waiting))

    def forward(self, model: str, began: float, ended: float, tokens: int, exchange_s: float) -> None:
        """Record a forward pass over so many tokens."""
        self._forwards.append((model, began, ended, tokens, exchange_s))

    def exchange(self, kind: str, began: float, ended: float, size_bytes: int) -> None:
        """Record a call between the ranks."""
        self._exchanges.append((kind, began, ended, size_bytes))

    def events(self, rank: int, host: str, zero: float) -> Iterator[str]:
        """Yield the events in the Trace Event format as JSON; `zero` is where time begins on this rank's clock."""
        yield _name("process_name", rank, _PROCESS, f"rank {rank} ({host})")
        yield _name("thread_name", rank, _FORWARD, "forward and exchange")
        for model, began, ended, tokens, exchange_s in self._forwards:
            args = f'{{"model":{json.dumps(model)},"tokens":{tokens},"exchange_us":{exchange_s * 1e6:.3f}}}'
            yield _slice(rank, _FORWARD, ("forward", began, ended), zero, args)
            if rank == 0:
                yield _counter(f"{model} tokens in the step", began, zero, f'{{"tokens":{tokens}}}')
                yield _counter(f"{model} tokens in the step", ended, zero, '{"tokens":0}')
        for kind, began, ended, size_bytes in self._exchanges:
            yield _slice(rank, _FORWARD, (kind, began, ended), zero, f'{{"bytes":{size_bytes}}}')
        if rank == 0:
            yield from self._step_events(zero)

    def write(self, texts: list[bytes]) -> str:
        """Write the events of all ranks into the file, whole or not at all; return a line that says so."""
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            temporary.write_bytes(b'{"displayTimeUnit":"ms","traceEvents":[\n' + b",\n".join(texts) + b"\n]}\n")
            temporary.replace(self.path)
        except OSError as e:
            with suppress(OSError):
                temporary.unlink()
            return f"the trace could not be written to {self.path}: {e.strerror}; give another path with trace=…"
        return f"the trace of {len(texts)} ranks is in {self.path}; open it at https://ui.perfetto.dev"

    def _step_events(self, zero: float) -> Iterator[str]:
        """Yield the events of lane 1 and the count of sequences."""
        yield _name("thread_name", 0, _PHASES, "steps")
        for model, parts, running, waiting in self._steps:
            ended = parts[-1][2]
            yield _slice(0, _PHASES, ("step", parts[0][1], ended), zero, f'{{"model":{json.dumps(model)}}}')
            for part in parts:
                yield _slice(0, _PHASES, part, zero, "{}")
            yield _counter(f"{model} sequences", ended, zero, f'{{"running":{running},"waiting":{waiting}}}')


def check_path(path: Path) -> None:
    """Raise ConfigError where no file can be written at the path, or something that is no file is there."""
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)) or (path.exists() and not path.is_file()):
        raise ConfigError(
            f"trace is {quoted(str(path))}; it must be a file, there or not yet, in a folder that can be written"
        )


def clock_ahead(comm: Communicator, facts: list[RankFacts]) -> float:
    """Return how many seconds this rank's time.perf_counter() is ahead of rank 0's; collective.

    Ranks of one host share that clock. Others compare when they leave a collective call, which all leave at nearly the
    same time.
    """
    if len({fact.host for fact in facts}) == 1:
        return 0.0
    marks = []
    for _ in range(_CLOCK_ROUNDS):
        comm.collect(b"")
        marks.append(time.perf_counter())
    first: list[float] = json.loads(comm.collect(json.dumps(marks).encode())[0])
    if facts[comm.rank].host == facts[0].host:
        return 0.0
    return statistics.median(mine - its for mine, its in zip(marks, first, strict=True))


def gather_texts(comm: Communicator, text: bytes) -> list[bytes]:
    """Return the texts of all ranks on rank 0 and nothing elsewhere; collective. No other rank ever holds them all."""
    texts = []
    for rank in range(comm.size):
        told = comm.collect(text if rank == comm.rank else b"")
        texts += [told[rank]] if comm.rank == 0 else []
    return texts


def _slice(rank: int, lane: int, part: Part, zero: float, args: str) -> str:
    """Return the event of something that took time; args is JSON."""
    name, began, ended = part
    at = round((began - zero) * 1e9)
    lasted = round((ended - zero) * 1e9) - at  # so that what lies within another slice also does after rounding
    times = f'"ts":{at / 1e3:.3f},"dur":{lasted / 1e3:.3f}'
    return f'{{"ph":"X","name":"{name}",{_ids(rank, lane)},{times},"args":{args}}}'


def _counter(name: str, at: float, zero: float, args: str) -> str:
    """Return the event that draws values as curves of rank 0; args is JSON."""
    ids, time_us = _ids(0, _PROCESS), f"{(at - zero) * 1e6:.3f}"
    return f'{{"ph":"C","name":{json.dumps(name)},{ids},"ts":{time_us},"args":{args}}}'


def _name(kind: str, rank: int, lane: int, text: str) -> str:
    """Return the event that names a process or a lane."""
    return f'{{"ph":"M","name":"{kind}",{_ids(rank, lane)},"args":{{"name":{json.dumps(text)}}}}}'


def _ids(rank: int, lane: int) -> str:
    """Return process and thread: Perfetto takes 0 for the kernel's idle process, and a thread's number for its own."""
    return f'"pid":{rank + 1},"tid":{10 * (rank + 1) + lane}'
