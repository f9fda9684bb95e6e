"""A thread world whose rank 0 tests all ranks, by a clock that the tests turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from ollampi.mpiruntime.checkup import BUDGET_S, Checkup
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.ending import END
from ollampi.mpiruntime.engine import Engine
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import survey
from support.worlds import Recorder

GREEDY = Sampling(temperature=0.0)
SETTINGS = EngineSettings(cache_tokens=64, context_length=64, block_size=4, max_step_tokens=7)
NEVER, CHECK_S = 1e9, 10.0


def follow(comm: Communicator, last: list[Runner]) -> None:
    """Follow rank 0; the runner of the last rank is added to `last`."""
    runner = Runner(comm, survey(comm))
    if comm.rank == comm.size - 1:
        last.append(runner)
    runner.follow()


class World:
    """Rank 0 of a world with an engine that tests; the clock goes on by `tick_s` whenever the checkup looks at it."""

    def __init__(
        self,
        comm: Communicator,
        client: Recorder,
        tick_s: float,
        check_s: float = CHECK_S,
        settings: EngineSettings = SETTINGS,
    ) -> None:
        self.runner = Runner(comm, survey(comm))
        self.models = Models(self.runner, settings)
        self.health = self.runner.health = Health(comm.size, NEVER, NEVER, check_s)
        ticks = itertools.count(1)
        self.checkup = Checkup(self.runner, self.models, self.health, lambda: next(ticks) * tick_s)
        self.client = client
        self.looks = self.tests = self.busy = 0
        self.on_look: Callable[[], None] = lambda: None
        lead, self.runner.lead_examine = self.runner.lead_examine, self.examine  # type: ignore[method-assign]
        self.lead = lead

    def examine(self, message: Any) -> Any:
        self.busy += bool(self.models.busy())
        assert message.budget_s == BUDGET_S
        self.tests += 1
        return self.lead(message)

    def look(self) -> None:
        self.looks += 1
        self.checkup.look()
        self.on_look()

    def run(self, until: Callable[[], bool]) -> None:
        def supervise() -> None:
            self.look()
            if until() and not self.client.open:
                self.runner.comm.notify(END)

        Engine(self.runner, self.models, self.client, 5.0, supervise=supervise).run()


def on_rank_0(size: int, work: Callable[[Communicator], Any]) -> Any:
    """Return what `work` returns on rank 0 of a thread world; the others follow it."""
    return run_threads(size, lambda comm: Runner(comm, survey(comm)).follow() if comm.rank else work(comm))[0]
