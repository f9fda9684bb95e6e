"""Have all ranks test themselves: while there is nothing else to do, and now and then beside work. Rank 0 leads."""

from __future__ import annotations

from collections.abc import Callable

from ollampi.mpiruntime.health import CHECKS, Health
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.self_test import judged
from ollampi.mpiruntime.step import Examine

BUDGET_S = 0.02  # of a test on each rank: what the first token of an answer, or the next one, may wait for it
# Intervals between two tests of ranks that always have work: fewer than those in which every rank must have worked,
# since a test waits for the step that is under way, and the next look comes some time after it is due.
BUSY = CHECKS - 1
_LEARNING_S = 0.1  # between tests as long as there are weights that none has looked at
_GROUPS, _BLOCKS = 4, 16  # whose sums one test looks at, and of each cache


class Checkup:
    """Leads the self-tests; `look` is called several times a second by the engine's thread, between steps."""

    def __init__(self, runner: Runner, models: Models, health: Health, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._models = models
        self._health = health
        self._clock = clock
        self._next = self._tested = 0.0
        self._numbers: set[int] = set()
        self._turn = 0

    def look(self) -> None:
        """Note that the loop goes round; test where it is time, no model is being loaded, and no rank is silent."""
        self._health.turn()
        check_s = self._health.check_s
        numbers = {number for model in self._models.hosted() for number in model.numbers()}
        if not numbers <= self._numbers:
            self._next = 0.0  # weights are to be known before anything happens to them
        self._numbers = numbers
        due = self._tested + BUSY * check_s if self._models.busy() else self._next
        if not check_s or self._clock() < due or self._models.loading or not self._health.all_online:
            return
        findings = self._runner.lead_examine(Examine(BUDGET_S, self._groups(), self._blocks()))
        self._health.tested(judged(findings))
        is_learning = any(finding.learning for finding in findings)
        self._tested = self._clock()
        self._next = self._tested + (min(_LEARNING_S, check_s) if is_learning else check_s)

    def _groups(self) -> list[list[int]]:
        """Return the ranks of some groups of several ranks, all in turn; the one of all ranks is tested anyway."""
        world = self._runner.groups.world.ranks
        known = sorted({tuple(sorted(model.ranks)) for model in self._models.hosted()} - {world})
        groups = [list(ranks) for ranks in known if len(ranks) > 1]
        at = self._turn % len(groups) if groups else 0
        self._turn = at + _GROUPS
        return sorted([*groups[at:], *groups[:at]][:_GROUPS])

    def _blocks(self) -> list[list[int]]:
        """Return some blocks of each model that nobody writes, all in turn."""
        return [
            [model.number, block, version]
            for model in self._models.hosted()
            for block, version in model.scheduler.blocks.lasting(_BLOCKS)
        ]
