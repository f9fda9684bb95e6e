"""Load the replicas of models on groups of ranks, one after the other, and put them in their places. Rank 0 only."""

from __future__ import annotations

import logging

from ollampi.mpiruntime.balancing import Balancer
from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.draft_model import DraftModel
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.hosted_model import HostedModel, Stay
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.log_files import SCHEDULER
from ollampi.mpiruntime.metrics import ModelCounts
from ollampi.mpiruntime.placed import Coming, Placed
from ollampi.mpiruntime.placing import Placer
from ollampi.mpiruntime.present import Present
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Load, Unload

KEEP_ALIVE_S = 300.0
_log = logging.getLogger(SCHEDULER)


class Loads(Present):
    """The models in memory by name, and the one that is being loaded, if one is. points: as for a Placer."""

    def __init__(self, runner: Runner, settings: EngineSettings, points: str, cluster: ClusterSettings) -> None:
        super().__init__()
        self.runner = runner
        self.settings = settings
        self.cluster = cluster
        self.counts: dict[str, ModelCounts] = {}  # by name; they outlive the model
        self._placer = Placer(runner, points, self.counts)
        self._pinned: ModelRef | None = None
        self._draft: ModelRef | None = None
        self._staying: set[str] = set()  # names of those that were preloaded

    def _drafts(self, ref: ModelRef) -> list[str]:
        """Return the paths of what drafts for a model."""
        return [self._draft.path] if self._draft and ref == self._pinned else []

    def _start(self, coming: Coming, load: Load, ranks: tuple[int, ...]) -> None:
        """Have a replica loaded."""
        coming.load, coming.ranks, coming.holds_up = load, frozenset(ranks), self.runner.holds_up(load)
        self.runner.begin(load)

    def _advance(self, coming: Coming) -> bool:
        """Go on with a load as far as nobody must be waited for; return whether it is over. Raise ModelError."""
        try:
            while coming.rest or coming.load is not None:
                if coming.load is None:
                    self._load_next(coming)
                elif not self.runner.loaded(coming.load):
                    return False
                else:
                    self._take(coming, self.runner.finish(coming.load))
        except ModelError as e:
            self._coming, coming.error = None, e
            for model in coming.done:
                self._free(model)
            raise
        self._coming = None
        if coming.moves is None:
            balancer = Balancer(self.cluster.load_balancing)
            self._placed[coming.ref.name] = Placed(coming.ref, coming.done, coming.layout, coming.wish, balancer)
        else:
            coming.moves.placed.swap(coming.moves.old, coming.done[0])
        return True

    def _load_next(self, coming: Coming) -> None:
        """Begin to load the next replica; one with rank 0 is there then."""
        ranks, staying = coming.rest.pop(0), [*self.hosted(), *coming.done]
        self._start(coming, self._placer.next(coming.first, ranks, coming.layout.settings, staying), ranks)

    def _take(self, coming: Coming, reports: list[LoadReport]) -> None:
        """Take note of a replica that is there, and begin to load what drafts for it; or of what drafts for one."""
        assert coming.load is not None
        load, coming.load, coming.ranks = coming.load, None, frozenset()
        if coming.drafted is not None:
            model, coming.drafted = coming.drafted, None
            model.draft = DraftModel(load.model, load.context, model.settings.max_step_tokens, load.name, reports)
            return
        model = self._placer.hosted(
            coming.ref, load, reports, coming.layout.settings, self._stay(coming), self._beside(coming)
        )
        coming.done.append(model)
        held, slowest_s = sum(r.held_bytes for r in reports), max(r.seconds for r in reports)
        text = "%s loaded: context %d, %s, %d bytes, %.1f s"
        _log.info(text, coming.ref.name, load.context, load.dtype, held, slowest_s)
        if coming.ref == self._pinned and self._draft is not None:
            coming.drafted = model
            self._start(coming, self._placer.draft(self._draft, model, load), model.ranks)

    def _beside(self, coming: Coming) -> list[HostedModel]:
        """Return the other replicas of the model that is being loaded."""
        moves = coming.moves
        return coming.done if moves is None else [model for model in moves.placed.replicas if model is not moves.old]

    def _stay(self, coming: Coming) -> Stay:
        """Return how long a model stays, which all its replicas have in common."""
        if coming.moves is not None:
            return coming.moves.old.stay
        if coming.done:
            return coming.done[0].stay
        default_s = self._default_keep_s(coming.ref)
        return Stay(default_s, default_s)

    def _default_keep_s(self, ref: ModelRef) -> float:
        """Return how long a model stays where no request says so."""
        if ref.name in self._staying:
            return -1.0
        if self.settings.keep_alive_s is not None:
            return self.settings.keep_alive_s
        return -1.0 if ref == self._pinned else KEEP_ALIVE_S

    def _free(self, model: HostedModel) -> None:
        """Free a replica, unless that was done already."""
        if not model.gone:
            model.gone = True
            for number in model.numbers():
                self.runner.lead(Unload(number))
