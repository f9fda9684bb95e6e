"""Have all ranks test themselves while there is nothing else to do. Rank 0 only; the other ranks follow."""

from __future__ import annotations

import math
from collections.abc import Callable

from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.self_test import judged
from ollampi.mpiruntime.step import Examine

BUDGET_S = 0.02  # of a test on each rank: what the first token of an answer may wait for it
_LEARNING_S = 0.1  # between tests as long as there are weights that none has looked at


class Checkup:
    """Leads the self-tests; `look` is called several times a second by the engine's thread, between steps."""

    def __init__(self, runner: Runner, models: Models, health: Health, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._models = models
        self._health = health
        self._clock = clock
        self._next = 0.0 if health.check_s else math.inf
        self._numbers: set[int] = set()

    def look(self) -> None:
        """Note that the loop goes round; test where it is time, no model has work or is being
        loaded, and no rank is silent."""
        self._health.turn()
        numbers = {number for model in self._models.hosted() for number in model.numbers()}
        if not numbers <= self._numbers and self._health.check_s:
            self._next = 0.0  # weights are to be known before anything happens to them
        self._numbers = numbers
        if self._clock() < self._next or self._models.busy() or self._models.loading or not self._health.all_online:
            return
        findings = self._runner.lead_examine(Examine(BUDGET_S))
        self._health.tested(judged(findings))
        is_learning = any(finding.learning for finding in findings)
        self._next = self._clock() + (min(_LEARNING_S, self._health.check_s) if is_learning else self._health.check_s)
