"""A world behind an engine whose models lie on groups of ranks, and what a lone model answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.thread_world import run_threads
from support.checkpoints import PROMPT, reference_greedy
from support.worlds import Recorder, generate, named, run_engine

GREEDY = Sampling(temperature=0.0)
SETTINGS = EngineSettings(context_length=64, cache_tokens=256, block_size=4, max_step_tokens=7, max_loaded_models=9)
NEVER = 1e9
_LONGEST = 40  # tokens of any answer


@lru_cache
def _longest(folder: Path, length: int) -> list[int]:
    """Return what a lone model answers to a beginning of the prompt, as much as any test wants."""
    return reference_greedy(folder, PROMPT[:length], _LONGEST)


def alone(folder: Path, length: int, count: int) -> list[int]:
    """Return the first tokens that a lone model answers to a beginning of the prompt."""
    assert count <= _LONGEST
    return _longest(folder, length)[:count]


def ask(number: int, name: str, folder: Path, length: int, count: int = 6) -> dict[str, Any]:
    """Return the request for an answer to a beginning of the prompt."""
    return named(name, generate(number, folder, PROMPT[:length], sampling=GREEDY, max_tokens=count))


def answers(size: int, messages: list[dict[str, Any]], recorder: Recorder | None = None, **how: Any) -> Recorder:
    """Return the events of a world that gets messages."""
    found = run_threads(size, lambda c: run_engine(c, messages, SETTINGS, recorder, **how))[0]
    assert found is not None
    return found


def placement(recorder: Recorder, number: int) -> dict[str, Any]:
    """Return where a message that places a model had it placed."""
    found = recorder.last(number)
    assert found["kind"] == "placed", found
    entry: dict[str, Any] = found["placement"]
    return entry


class Job:
    """A thread world behind an engine, and what is known of it when its last request has ended."""

    def __init__(self, size: int, client: Recorder, **how: Any) -> None:
        self.client = client
        self.health = Health(size, NEVER, NEVER, 0)
        self.said: list[str] = []
        self.health.announce = self.said.append
        self.lies: dict[str, list[list[int]]] = {}
        self.usable: tuple[int, ...] = ()
        self.checks: Callable[[Runner, Models], None] = lambda runner, models: None
        run_threads(size, lambda comm: self._run(comm, **how))

    def _run(self, comm: Communicator, **how: Any) -> None:
        client, health = (None, None) if comm.rank else (self.client, self.health)
        run_engine(comm, [], SETTINGS, client, health=health, supervise=self._look, **how)

    def _look(self, runner: Runner, models: Models) -> None:
        self.health.turn()
        self.checks(runner, models)
        self.lies = {p.ref.name: [list(replica.ranks) for replica in p.replicas] for p in models.placed()}
        self.held = sorted({rank for model in models.hosted() for rank in model.ranks})
        self.usable = models.usable

    @property
    def statuses(self) -> list[str]:
        return [node.status for node in self.health.nodes()]
