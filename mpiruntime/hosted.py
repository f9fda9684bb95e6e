"""Keep the models that are in memory: load on demand, unload when their time is over. Rank 0 only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ConflictError, ModelError
from ollampi.mpiruntime.eviction import NotYet, await_idle, in_order
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.layouts import Arrival, Layouts
from ollampi.mpiruntime.loads import Loads
from ollampi.mpiruntime.log_files import SCHEDULER
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.placed import Coming, Move, Placed, replicas_of
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.step import Load
from ollampi.mpiruntime.strategy import Layout

T = TypeVar("T")
_WAIT_S = 0.002
_log = logging.getLogger(SCHEDULER)


class Models(Loads):
    """The models in memory by name. A model is loaded on all ranks that hold weights, as far as it has heads.

    Unless it is placed otherwise.
    """

    def __init__(
        self, runner: Runner, settings: EngineSettings, points: str = "all", cluster: ClusterSettings | None = None
    ) -> None:
        super().__init__(runner, settings, points, cluster or ClusterSettings())
        world = runner.groups.world.ranks
        apart = self.cluster.node_role == "coordinator" and len(world) > 1
        self._layouts = Layouts(self._placer, settings, world[1:] if apart else world, points)
        self._failed: dict[ModelRef, ModelError] = {}  # loads that others waited for, until these have been told
        self.while_held_up: Callable[[], AbstractContextManager[None]] = nullcontext  # where a load is waited for

    @property
    def usable(self) -> tuple[int, ...]:
        """Return the ranks that may hold weights; for any thread."""
        return self._layouts.usable

    def use(self, ranks: Sequence[int]) -> None:
        """Place models on these ranks only from now on; what lies on others stays."""
        self._layouts = replace(self._layouts, usable=tuple(sorted(ranks)))

    def pin(self, ref: ModelRef, draft: ModelRef | None = None) -> HostedModel:
        """Load the model that the server was started for; it stays unless the settings or a request say otherwise.

        draft is a smaller model with the same tokens that drafts for it. Raise ModelError, and WorldError where it has
        fewer heads than there are ranks: they were started for it.
        """
        config = read_config(Path(ref.path))
        Shard(0, len(self.usable)).heads(config.num_heads, config.num_kv_heads)
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
        placed = self.awaited(lambda: self._placed.get(ref.name) or self._begin(ref, Wish(), layout, evicts=False))
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
                return self._open(placed, prompt)
            wish, layout = replace(placed.wish, context=context), placed.layout
        else:
            wish, layout = Wish(context=context), self._layouts.everywhere()
        return self._open(self._begin(ref, wish, layout, evicts=True), prompt)

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
        return self._begin(ref, wish, None, evicts=True)

    def fits(self, move: Move, ranks: tuple[int, ...], first: bool) -> Load:
        """Return how a replica is to be loaded on other ranks; raise ModelError where it does not fit there.

        first: whether that replica stays until then, else it goes before.
        """
        placed, gone = move.placed, [] if first else [move.old]
        return self._placer.check(
            placed.ref,
            [ranks],
            placed.wish.context,
            placed.layout.settings,
            gone,
            self.hosted(),
            self._drafts(placed.ref),
        )

    def begin_move(self, move: Move, ranks: tuple[int, ...], load: Load, first: bool) -> Coming:
        """Load a replica on other ranks, in place of the one that is there; nothing else may be under way.

        first: as for `fits`; without it, the one that is there has no work. Return how far that is: where it fails,
        that has an `error`.
        """
        if not first:
            self._free(move.old)
        placed = move.placed
        self._coming = coming = Coming(placed.ref, placed.layout, placed.wish, load, moves=move)
        with self.while_held_up() if self.runner.takes_long(load) else nullcontext(), suppress(ModelError):
            self._start(coming, load, ranks)
            self._advance(coming)
        return coming

    def drop(self, move: Move) -> None:
        """Take a replica out once it has finished what it has; unload its model where it is gone and the last one."""
        if move.placed.replicas == [move.old]:
            self._unload(move.placed, "its ranks left")
        else:
            move.placed.swap(move.old, None)

    def go_on(self) -> bool:
        """Go on with a load; return whether it is over, well or not: those who wait for it then ask again."""
        if self._coming is None:
            return True
        coming = self._coming
        try:
            return self._advance(coming)
        except ModelError as e:
            if coming.moves is not None:  # the model is there
                return True
            self._failed[coming.ref] = type(e)(f"model {coming.ref.name}: {e}")
            return True

    def forget_failures(self) -> None:
        """Let the next who wants a model whose load failed try again: all who waited for it have been told."""
        self._failed.clear()

    def expire(self, now: float) -> None:
        """Unload every model whose time is over, and replicas that had to finish what they had."""
        for placed in list(self._placed.values()):
            for model in [model for model in placed.retiring if model.idle and not self.is_held_up(model)]:
                self._free(model)
                placed.retiring = [other for other in placed.retiring if other is not model]
            is_moving = self._coming is not None and self._coming.ref.name == placed.ref.name
            if placed.expired(now) and not is_moving and not any(map(self.is_held_up, replicas_of([placed]))):
                self._unload(placed, f"idle for {placed.keep_s:g} s")

    def unload_when_idle(self, name: str) -> None:
        """Unload a model, after its running requests where there are any; one that is not there is ignored."""
        if name in self._placed:
            self._placed[name].replicas[0].keep(0.0)
            self.expire(time.monotonic())

    def _begin(self, ref: ModelRef, wish: Wish, layout: Layout | None, evicts: bool) -> Placed:
        """Load a model in place of others, or in addition; raise NotYet where that must wait or takes a while.

        layout: where it is to lie, None to choose by the wish; evicts: whether others may go for it.
        """
        if ref in self._failed:
            raise self._failed[ref]
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

    def _open(self, placed: Placed, prompt: Sequence[int]) -> HostedModel:
        """Return the replica that takes a prompt; raise NotYet where all are closed until others are there."""
        model = placed.choose(prompt)
        if model is None:
            raise NotYet({placed.ref.name})
        return model

    def _first(
        self,
        ref: ModelRef,
        wish: Wish,
        layout: Layout | None,
        leaving: Sequence[Placed],
        others: Sequence[Placed],
    ) -> Coming:
        """Begin to load the first replica, once `leaving` have gone and as many of `others` as memory takes."""

        have = Arrival(ref, wish, self.hosted(), self._drafts(ref))
        (chosen, load), going = self._layouts.room(have, layout, leaving, others)
        await_idle(ref.name, going)
        for placed in going:
            self._unload(placed, f"makes room for {ref.name}")
        first, *rest = chosen.in_turn()
        self._coming = coming = Coming(ref, chosen, wish, load, rest)
        with self.while_held_up() if self.runner.takes_long(load) else nullcontext():
            self._start(coming, load, first)
        return coming

    def _unload(self, placed: Placed, why: str) -> None:
        """Free a model on all ranks."""
        _log.info("%s unloaded: %s", placed.ref.name, why)
        del self._placed[placed.ref.name]
        for model in replicas_of([placed]):
            self._free(model)
