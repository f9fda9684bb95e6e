"""Keep the models that are in memory: load on demand, unload when their time is over. Rank 0 only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ollampi.mpiruntime.balancing import Balancer
from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ConflictError, ModelError
from ollampi.mpiruntime.eviction import NotYet, await_idle, in_order, make_room
from ollampi.mpiruntime.hosted_model import HostedModel, Stay
from ollampi.mpiruntime.layouts import Layouts
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.log_files import SCHEDULER
from ollampi.mpiruntime.metrics import ModelCounts
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.placed import Coming, Placed, replicas_of
from ollampi.mpiruntime.placing import Placer
from ollampi.mpiruntime.present import Present
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Load, Unload
from ollampi.mpiruntime.strategy import Layout

T = TypeVar("T")
KEEP_ALIVE_S = 300.0
_WAIT_S = 0.002
_log = logging.getLogger(SCHEDULER)


class Models(Present):
    """The models in memory by name. A model is loaded on all ranks that hold weights, unless it is placed otherwise."""

    def __init__(
        self, runner: Runner, settings: EngineSettings, points: str = "all", cluster: ClusterSettings | None = None
    ) -> None:
        super().__init__()
        self.runner = runner
        self.settings = settings
        self.cluster = cluster or ClusterSettings()
        self.counts: dict[str, ModelCounts] = {}  # by name; they outlive the model
        world = runner.groups.world.ranks
        apart = self.cluster.node_role == "coordinator" and len(world) > 1
        self.usable = world[1:] if apart else world
        self._placer = Placer(runner, points, self.counts)
        self._layouts = Layouts(self._placer, settings, self.usable, points)
        self._failed: dict[str, ModelError] = {}  # loads that others waited for, until these have been told
        self._pinned: ModelRef | None = None
        self._draft: ModelRef | None = None
        self._staying: set[str] = set()  # names of those that were preloaded
        self.while_held_up: Callable[[], AbstractContextManager[None]] = (
            nullcontext  # entered where a load is waited for
        )

    def pin(self, ref: ModelRef, draft: ModelRef | None = None) -> HostedModel:
        """Load the model that the server was started for; it stays unless the settings or a request say otherwise.

        draft is a smaller model with the same tokens that drafts for it. Raise ModelError.
        """
        self._pinned, self._draft = ref, draft
        return self.awaited(lambda: self.get(ref))

    def preload(self, ref: ModelRef) -> HostedModel:
        """Load a model that stays, beside those that are there; raise ModelError where there is no place for it."""
        self._staying.add(ref.name)
        if len(self._placed) >= self.settings.max_loaded_models and ref.name not in self._placed:
            raise ModelError(
                f"model {ref.name} of cluster.preload has no place beside {', '.join(self._placed)}:"
                f" engine.max_loaded_models is {self.settings.max_loaded_models}; raise it, or preload fewer"
            )
        layout = self._layouts.everywhere()
        placed = self.awaited(
            lambda: self._placed.get(ref.name) or self._begin(ref, Wish(), lambda leaving: layout, evicts=False)
        )
        first = placed.replicas[0]
        first.stay.keep_s = first.stay.default_s = -1.0
        return first

    def awaited(self, get: Callable[[], T]) -> T:
        """Return what `get` does once no load is in its way; for where no engine runs."""
        while True:
            try:
                return get()
            except NotYet:
                while not self.go_on():
                    time.sleep(_WAIT_S)
            except ModelError:
                self.forget_failures()
                raise

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
            wish, layout = Wish(context=context), self._layouts.everywhere()
        return self._begin(ref, wish, lambda leaving: layout, evicts=True).choose(prompt)

    def place(self, ref: ModelRef, wish: Wish) -> Placed:
        """Return the model placed as wished; raise as `get` does, and RequestError for what no placement can be.

        How long it stays is no part of where it lies: the wish's keep_alive_s is for the caller.
        """
        wish = replace(wish, keep_alive_s=None)
        if self._coming is not None and self._coming.ref.name == ref.name and self._coming.wish != wish:
            raise ConflictError(f"model {ref.name} is being loaded, and not as asked for now; wait until it is there")
        placed = self._placed.get(ref.name)
        if placed is not None and (placed.ref, placed.wish) == (ref, wish):
            return placed
        return self._begin(
            ref, wish, lambda gone: self._layouts.chosen(ref, wish, self.hosted(), replicas_of(gone)), evicts=True
        )

    def go_on(self) -> bool:
        """Go on with a load; return whether it is over, well or not: those who wait for it then ask again."""
        if self._coming is None:
            return True
        coming = self._coming
        try:
            return self._advance(coming)
        except ModelError as e:
            self._failed[coming.ref.name] = type(e)(f"model {coming.ref.name}: {e}")
            return True

    def forget_failures(self) -> None:
        """Let the next who wants a model whose load failed try again: all who waited for it have been told."""
        self._failed.clear()

    def expire(self, now: float) -> None:
        """Unload every model whose time is over."""
        for placed in [p for p in self._placed.values() if all(m.expired(now) for m in p.replicas)]:
            if not any(self._is_held_up(model) for model in placed.replicas):
                self._unload(placed, f"idle for {placed.keep_s:g} s")

    def unload_when_idle(self, name: str) -> None:
        """Unload a model, after its running requests where there are any; one that is not there is ignored."""
        if name in self._placed:
            self._placed[name].replicas[0].keep(0.0)
            self.expire(time.monotonic())

    def _begin(self, ref: ModelRef, wish: Wish, layout: Callable[[Sequence[Placed]], Layout], evicts: bool) -> Placed:
        """Load a model in place of others, or in addition; raise NotYet where that must wait or takes a while.

        layout: returns where it is to lie once some models have gone; evicts: whether others may go for it.
        """
        if ref.name in self._failed:
            raise self._failed[ref.name]
        if self._coming is not None:
            raise NotYet({ref.name, self._coming.ref.name})
        own = self._placed.get(ref.name)
        too_many = evicts and len(self._placed) >= self.settings.max_loaded_models
        leaving = [own] if own is not None else in_order(self._placed.values())[:too_many]
        await_idle(ref.name, leaving)
        others = in_order(placed for placed in self._placed.values() if evicts and placed not in leaving)
        try:
            over = self._advance(self._first(ref, wish, layout, leaving, others))
        except ModelError as e:
            raise type(e)(f"model {ref.name}: {e}") from e
        if not over:
            raise NotYet({ref.name})
        return self._placed[ref.name]

    def _first(
        self,
        ref: ModelRef,
        wish: Wish,
        layout: Callable[[Sequence[Placed]], Layout],
        leaving: Sequence[Placed],
        others: Sequence[Placed],
    ) -> Coming:
        """Begin to load the first replica, once `leaving` have gone and as many of `others` as memory takes."""

        def found(going: Sequence[Placed]) -> tuple[Layout, Load]:
            chosen = layout(going)
            return chosen, self._check(ref, wish, chosen, chosen.in_turn()[0], replicas_of(going), [])

        self.runner.beside(lambda: read_config(Path(ref.path)))
        (chosen, load), going = make_room(found, leaving, others)
        await_idle(ref.name, going)
        for placed in going:
            self._unload(placed, f"makes room for {ref.name}")
        first, *rest = chosen.in_turn()
        self._coming = coming = Coming(ref, chosen, wish, rest)
        with self.while_held_up() if self.runner.takes_long(load) else nullcontext():
            self._start(coming, load, first)
        return coming

    def _check(
        self,
        ref: ModelRef,
        wish: Wish,
        layout: Layout,
        ranks: tuple[int, ...],
        gone: list[HostedModel],
        done: list[HostedModel],
    ) -> Load:
        """Return how a replica is to be loaded on some ranks; raise ModelError where it does not fit there."""
        drafts = [self._draft.path] if self._draft and ref == self._pinned else []
        staying = [*self.hosted(), *done]
        return self._placer.check(ref, ranks, wish.context, layout.settings, gone, staying, drafts)

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
        ranks = coming.rest.pop(0)
        self._start(coming, self._check(coming.ref, coming.wish, coming.layout, ranks, [], coming.done), ranks)

    def _take(self, coming: Coming, reports: list[LoadReport]) -> None:
        """Take note of a replica that is there, and load what drafts for it."""
        assert coming.load is not None
        load, coming.load, coming.ranks = coming.load, None, frozenset()
        default_s = self._default_keep_s(coming.ref)
        stay = coming.done[0].stay if coming.done else Stay(default_s, default_s)
        model = self._placer.hosted(coming.ref, load, reports, coming.layout.settings, stay)
        coming.done.append(model)
        held, slowest_s = sum(r.held_bytes for r in reports), max(r.seconds for r in reports)
        text = "%s loaded: context %d, %s, %d bytes, %.1f s"
        _log.info(text, coming.ref.name, load.context, load.dtype, held, slowest_s)
        if coming.ref == self._pinned and self._draft is not None:
            model.draft = self._placer.load_draft(self._draft, model, load)

    def _default_keep_s(self, ref: ModelRef) -> float:
        """Return how long a model stays where no request says so."""
        if ref.name in self._staying:
            return -1.0
        if self.settings.keep_alive_s is not None:
            return self.settings.keep_alive_s
        return -1.0 if ref == self._pinned else KEEP_ALIVE_S

    def _unload(self, placed: Placed, why: str) -> None:
        """Free a model on all ranks."""
        _log.info("%s unloaded: %s", placed.ref.name, why)
        del self._placed[placed.ref.name]
        for model in placed.replicas:
            self._free(model)

    def _free(self, model: HostedModel) -> None:
        """Free a replica."""
        for number in model.numbers():
            self.runner.lead(Unload(number))
