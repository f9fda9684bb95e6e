"""Return where a model shall lie: on all ranks that may, as far as it has heads, or as somebody wished. Rank 0 only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import MemoryShortError
from ollampi.mpiruntime.eviction import make_room
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.memory import BITS
from ollampi.mpiruntime.model_config import ModelConfig, read_config
from ollampi.mpiruntime.placed import Placed, replicas_of
from ollampi.mpiruntime.placing import DTYPES, Placer
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.step import Load
from ollampi.mpiruntime.step_work import ModelWork
from ollampi.mpiruntime.strategy import Chooser, Groups, Layout
from ollampi.mpiruntime.token_cost import Estimate
from ollampi.mpiruntime.would_fit import would_fit


@dataclass(frozen=True)
class Arrival:
    """A model that is to be loaded. hosted: all that is in memory; drafts: paths of models that will draft for it."""

    ref: ModelRef
    wish: Wish
    hosted: Sequence[HostedModel]
    drafts: Sequence[str] = ()


@dataclass(frozen=True)
class Layouts:
    """usable: the ranks that may hold weights; points: as ExchangeSettings.synchronization_points."""

    placer: Placer
    settings: EngineSettings
    usable: tuple[int, ...]
    points: str

    def everywhere(self) -> Layout:
        """Return the layout of a model that nobody placed."""
        why = "all ranks that hold weights share it, as nothing else was asked for"
        return Layout((self.usable,), self.settings, "auto", why)

    def room(
        self, arrival: Arrival, layout: Layout | None, leaving: Sequence[Placed], others: Sequence[Placed]
    ) -> tuple[tuple[Layout, Load], list[Placed]]:
        """Return where a model is to lie, how its first replica is to be loaded, and which models must go for it.

        All replicas are checked before anything is loaded or goes. layout: where it is to lie, None to choose by the
        wish; leaving: go in any case; as many of `others` as memory takes go too. Raise RequestError for what no
        placement can be, ModelError, and MemoryShortError which says what would fit.
        """

        def lie(chooser: Chooser) -> Layout | None:
            """Return where it is to lie, None to choose by the wish."""
            return None if layout is None else within_heads(layout, chooser)

        def found(going: Sequence[Placed]) -> tuple[Layout, Load]:
            """Return where the model lies once some have gone, and how its first replica is loaded."""
            chooser = self._chooser(arrival, going)
            chosen = lie(chooser) or chooser.choose(arrival.wish)
            return chosen, self._check(arrival, going, tuple(chosen.in_turn()), chosen.settings)

        try:
            return make_room(found, leaving, others)
        except MemoryShortError as e:
            chooser = self._chooser(arrival, [*leaving, *others])
            raise MemoryShortError(f"{e}; {would_fit(chooser, arrival.wish, lie(chooser))}") from e

    def _check(self, arrival: Arrival, going: Sequence[Placed], groups: Groups, settings: EngineSettings) -> Load:
        """Return how the first of some replicas is to be loaded; raise ModelError where not all of them fit."""
        gone = replicas_of(going)
        return self.placer.check(
            arrival.ref, groups, arrival.wish.context, settings, gone, arrival.hosted, arrival.drafts
        )

    def _chooser(self, arrival: Arrival, going: Sequence[Placed]) -> Chooser:
        """Return what chooses where a model lies once some models have gone."""
        config, settings = self.placer.runner.beside(lambda: read_config(Path(arrival.ref.path))), self.settings
        gone, held = replicas_of(going), dict[int, int]()
        for report in [report for model in arrival.hosted if model not in gone for report in model.reports]:
            held[report.rank] = held.get(report.rank, 0) + report.held_bytes
        own = [model for model in gone if model.ref.name == arrival.ref.name]

        def fits(groups: Groups, own: EngineSettings) -> Load:
            """Ask the ranks."""
            return self._check(arrival, going, groups, own)

        return Chooser(
            facts=self.placer.runner.facts,
            usable=self.usable,
            held=held,
            config=config,
            cost=self._cost(config),
            settings=settings,
            fits=fits,
            before=frozenset(rank for model in own for rank in model.ranks),
        )

    def _cost(self, config: ModelConfig) -> Estimate:
        """Return what steps of a model take here."""
        settings, runner = self.settings, self.placer.runner
        dtype = DTYPES.get(config.dtype, "float32") if settings.dtype == "auto" else settings.dtype
        quantize = settings.quantize if settings.quantize in BITS else "none"
        work = ModelWork(
            config,
            dtype,
            quantize,
            settings.cache_dtype,
            settings.experts == "spread",
            self.points,
            settings.deterministic,
            few=runner.choice.most_native(dtype if quantize == "none" else quantize),
        )
        cores = {fact.host: fact.usable for fact in runner.facts}
        return Estimate(work.decode, runner.rates, runner.facts[0].threads, cores)


def within_heads(layout: Layout, chooser: Chooser) -> Layout:
    """Return a layout with as many ranks for each replica as the model has heads, where it has fewer heads than ranks.

    It is for what nobody asked for, such as a plain request; a wish for more shards than heads is refused.
    """
    heads = chooser.config.num_heads
    if all(len(ranks) <= heads for ranks in layout.groups):
        return layout
    shares = f"{heads} rank shares" if heads == 1 else f"{heads} ranks share"
    why = f"{shares} it, since it has no more attention heads than that, and nothing else was asked for"
    return replace(layout, groups=chooser.spread(heads, len(layout.groups)), why=why)
