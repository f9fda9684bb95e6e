"""Keep the models that are in memory: load on demand, unload when their time is over. Rank 0 only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from ollampi.mpiruntime.balancing import Balancer
from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError, RequestError
from ollampi.mpiruntime.hosted_model import HostedModel, Stay
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.metrics import ModelCounts
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.placed import Coming, Placed
from ollampi.mpiruntime.placing import Placer
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.request import LoadedModel, ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.step import Unload
from ollampi.mpiruntime.strategy import Chooser, Layout, Wish
from ollampi.mpiruntime.synchronization import num_sums

KEEP_ALIVE_S = 300.0
_WAIT_S = 0.05


class NotYet(Exception):
    """A model cannot be had before another one, or its own smaller self, is idle; `names` are the models concerned."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(f"{' and '.join(sorted(names))} must be idle first")
        self.names = names


class Models:
    """The models in memory by name. A model is loaded on all ranks that hold weights, unless it is placed otherwise."""

    def __init__(
        self, runner: Runner, settings: EngineSettings, points: str = "all", cluster: ClusterSettings | None = None
    ) -> None:
        self.runner = runner
        self.settings = settings
        self.cluster = cluster or ClusterSettings()
        self.counts: dict[str, ModelCounts] = {}  # by name; they outlive the model
        world = runner.groups.world.ranks
        apart = self.cluster.node_role == "coordinator" and len(world) > 1
        self.usable = world[1:] if apart else world
        self._points = points
        self._placer = Placer(runner, points, self.counts)
        self._placed: dict[str, Placed] = {}
        self._coming: Coming | None = None
        self._failed: dict[str, ModelError] = {}  # loads that others waited for, until these have been told
        self._pinned: ModelRef | None = None
        self._draft: ModelRef | None = None
        self.while_loading: Callable[[], AbstractContextManager[None]] = nullcontext  # entered around each load

    def pin(self, ref: ModelRef, draft: ModelRef | None = None) -> HostedModel:
        """Load the model that the server was started for; it stays unless the settings or a request say otherwise.

        draft is a smaller model with the same tokens that drafts for it. Raise ModelError.
        """
        self._pinned, self._draft = ref, draft
        while True:
            try:
                return self.get(ref)
            except NotYet:
                while not self.go_on():
                    self.runner.replies.wait(_WAIT_S)

    def get(self, ref: ModelRef, context: int | None = None, prompt: Sequence[int] = ()) -> HostedModel:
        """Return a replica of the model for a prompt, loading it where it is not there, or needs a larger context.

        Raise ModelError where it cannot be loaded, and then all models are as before where config, files or memory
        are the reason; raise NotYet where a model that must go first has work, or other ranks are loading.
        """
        if self._pinned is not None and (ref.name, ref.path) == (self._pinned.name, self._pinned.path):
            ref = self._pinned  # with its adapters, of which clients know nothing
        placed = self._placed.get(ref.name)
        if placed is not None and placed.ref == ref:
            first = placed.replicas[0]
            if min(context or 0, first.config.max_context) <= first.context:
                return placed.choose(prompt)
            wish, layout = replace(placed.wish, context=context), placed.layout
        else:
            wish, layout = Wish(context=context), self._everywhere()
        return self._begin(ref, wish, lambda leaving: layout).choose(prompt)

    def place(self, ref: ModelRef, wish: Wish) -> Placed:
        """Return the model placed as wished; raise as `get` does, and RequestError for what no placement can be."""
        if self._coming is not None and self._coming.ref.name == ref.name and self._coming.wish != wish:
            raise RequestError(f"model {ref.name} is being loaded, and not as asked for now; wait until it is there")
        placed = self._placed.get(ref.name)
        if placed is not None and (placed.ref, placed.wish) == (ref, wish):
            return placed
        return self._begin(ref, wish, lambda leaving: self._choose(ref, wish, leaving))

    def busy(self) -> list[HostedModel]:
        """Return the replicas that have work and whose ranks are not loading another model."""
        return [m for m in self.hosted() if not m.idle and not self._is_held_up(m)]

    @property
    def loading(self) -> bool:
        """Return whether ranks without rank 0 are loading a model."""
        return self._coming is not None

    def go_on(self) -> bool:
        """Go on with a load on other ranks; return whether it is over, well or not."""
        self._failed.clear()
        if self._coming is None:
            return True
        coming = self._coming
        try:
            return self._advance(coming)
        except ModelError as e:
            self._failed[coming.ref.name] = ModelError(f"model {coming.ref.name}: {e}")
            return True

    def expire(self, now: float) -> None:
        """Unload every model whose time is over."""
        for placed in [p for p in self._placed.values() if all(m.expired(now) for m in p.replicas)]:
            if not any(self._is_held_up(model) for model in placed.replicas):
                self._unload(placed)

    def unload_when_idle(self, name: str) -> None:
        """Unload a model, after its running requests where there are any; one that is not there is ignored."""
        if name in self._placed:
            self._placed[name].replicas[0].keep(0.0)
            self.expire(time.monotonic())

    def hosted(self) -> list[HostedModel]:
        """Return all replicas in memory."""
        return [model for placed in list(self._placed.values()) for model in placed.replicas]

    def placed(self) -> list[Placed]:
        """Return the models in memory."""
        return list(self._placed.values())

    def listing(self) -> list[LoadedModel]:
        """Return what /api/ps tells of the models in memory."""
        return [p.listing() for p in self._placed.values()]

    def _everywhere(self) -> Layout:
        """Return the layout of a model that nobody placed."""
        why = "all ranks that hold weights share it, as nothing else was asked for"
        return Layout((self.usable,), self.settings, "auto", why)

    def _choose(self, ref: ModelRef, wish: Wish, leaving: Placed | None) -> Layout:
        """Return the layout for a wish; raise RequestError or ModelError."""
        config, settings = read_config(Path(ref.path)), self.settings
        held: dict[int, int] = {}
        for model in self.hosted():
            for report in model.reports:
                held[report.rank] = held.get(report.rank, 0) + report.held_bytes
        gone = leaving.replicas if leaving else []
        fits = self._placer.fits(ref, wish.context, self.hosted(), gone)
        dtype = "bfloat16" if settings.dtype == "bfloat16" else "float32"
        size = shard_size(config, Shard(0, 1), dtype).total_bytes
        sums = num_sums(config, self._points, settings.deterministic)
        return Chooser(self.runner.facts, self.usable, held, config, size, sums, settings, fits).choose(wish)

    def _begin(self, ref: ModelRef, wish: Wish, layout: Callable[[Placed | None], Layout]) -> Placed:
        """Load a model in place of another one, or in addition; raise NotYet where that must wait or takes a while."""
        if ref.name in self._failed:
            raise self._failed[ref.name]
        if self._coming is not None:
            raise NotYet({ref.name, self._coming.ref.name})
        leaving = self._placed.get(ref.name)
        if leaving is None and len(self._placed) >= self.settings.max_loaded_models:
            leaving = min(self._placed.values(), key=lambda m: (not m.idle, m.keep_s < 0, m.last_used))
        if leaving is not None and not leaving.idle:
            raise NotYet({ref.name, leaving.ref.name})
        with self.while_loading():
            try:
                read_config(Path(ref.path))
                chosen = layout(leaving)
                self._coming = Coming(
                    ref, chosen, wish, leaving, sorted(chosen.groups, key=lambda ranks: 0 not in ranks)
                )
                over = self._advance(self._coming)
            except ModelError as e:
                raise ModelError(f"model {ref.name}: {e}") from e
        if not over:
            raise NotYet({ref.name})
        return self._placed[ref.name]

    def _advance(self, coming: Coming) -> bool:
        """Go on with a load as far as nobody must be waited for; return whether it is over. Raise ModelError."""
        try:
            while coming.rest or coming.load is not None:
                if coming.load is None:
                    self._load_next(coming)
                elif not self.runner.ready(coming.load.model):
                    return False
                else:
                    self._take(coming, self.runner.finish(coming.load))
        except ModelError:
            self._coming = None
            for model in coming.done:
                self._free(model)
            raise
        self._coming = None
        balancer = Balancer(self.cluster.load_balancing)
        self._placed[coming.ref.name] = Placed(coming.ref, coming.done, coming.layout, coming.wish, balancer)
        return True

    def _load_next(self, coming: Coming) -> None:
        """Begin to load the next replica; one with rank 0 is there then."""
        ref, leaving = coming.ref, coming.leaving
        drafts = [self._draft.path] if self._draft and ref == self._pinned else []
        gone, settings = leaving.replicas if leaving else [], coming.layout.settings
        ranks, staying = coming.rest.pop(0), [*self.hosted(), *coming.done]
        load = self._placer.check(ref, ranks, coming.wish.context, settings, gone, staying, drafts)
        if leaving is not None:
            self._unload(leaving)
            coming.leaving = None
        coming.load, coming.ranks = load, frozenset(ranks)
        self.runner.begin(load)

    def _take(self, coming: Coming, reports: list[LoadReport]) -> None:
        """Take note of a replica that is there, and load what drafts for it."""
        assert coming.load is not None
        load, coming.load, coming.ranks = coming.load, None, frozenset()
        default_s = self._default_keep_s(coming.ref)
        stay = coming.done[0].stay if coming.done else Stay(default_s, default_s)
        model = self._placer.hosted(coming.ref, load, reports, coming.layout.settings, stay)
        coming.done.append(model)
        if coming.ref == self._pinned and self._draft is not None:
            model.draft = self._placer.load_draft(self._draft, model, load)

    def _is_held_up(self, model: HostedModel) -> bool:
        """Return whether a rank of a replica is loading another model."""
        return self._coming is not None and not self._coming.ranks.isdisjoint(model.ranks)

    def _default_keep_s(self, ref: ModelRef) -> float:
        """Return how long a model stays where no request says so."""
        if self.settings.keep_alive_s is not None:
            return self.settings.keep_alive_s
        return -1.0 if ref == self._pinned else KEEP_ALIVE_S

    def _unload(self, placed: Placed) -> None:
        """Free a model on all ranks."""
        del self._placed[placed.ref.name]
        for model in placed.replicas:
            self._free(model)

    def _free(self, model: HostedModel) -> None:
        """Free a replica."""
        for number in model.numbers():
            self.runner.lead(Unload(number))
