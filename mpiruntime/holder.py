"""Hold the models of one rank: read their slices beside its steps, which it computes with the ranks of their groups."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ollampi.kernels.choice import NATIVE, Choice
from ollampi.mpiruntime.agreement import attempt
from ollampi.mpiruntime.background import GIVEN_UP, Background
from ollampi.mpiruntime.cache_size import RankMemory
from ollampi.mpiruntime.cluster import Network
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.decoder import Output
from ollampi.mpiruntime.decoder_layer import Watch, look_away
from ollampi.mpiruntime.groups import Group, plain_groups
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.layer_file import Damaged
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.meters import Meters
from ollampi.mpiruntime.needed import needed
from ollampi.mpiruntime.placement import Placement, placement
from ollampi.mpiruntime.reading import Reading, with_reading
from ollampi.mpiruntime.replies import Reply
from ollampi.mpiruntime.self_test import Finding, SelfTest
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.slices import Reader, Slice, release
from ollampi.mpiruntime.step import Check, Examine, Load, Step, Unload
from ollampi.mpiruntime.token_cost import ASSUMED
from ollampi.mpiruntime.trace import Trace
from ollampi.mpiruntime.vitals import Activity
from ollampi.mpiruntime.world import RankFacts

_log = logging.getLogger(__name__)


class Holder:
    """The models of one rank. Steps, and the begin and end of a load, are collective over the group of the model.

    trace: where the steps are recorded; all ranks have one, or none. choice: the kernels, the same on all ranks. sums:
    where activations are summed, if not by comm; overlap: as ExchangeSettings.overlap.
    """

    def __init__(
        self,
        comm: Communicator,
        facts: list[RankFacts],
        trace: Trace | None = None,
        choice: Choice = NATIVE,
        sums: Communicator | None = None,
        overlap: str = "never",
    ) -> None:
        self._overlap = overlap
        self._cut = False  # whether the step that was sent last is computed in halves
        self.comm = comm
        self.facts = facts
        self.trace = trace
        self.choice = choice
        self.meters = Meters(comm, facts, trace)
        self.groups = plain_groups(comm, sums or comm, facts)
        self.place = placement(facts[comm.rank], comm.size == 1)
        self.network: Network | None = None  # what was measured at the start, if anything was
        self.rates = ASSUMED  # likewise
        self.activity = Activity()
        self.health: Health | None = None  # on rank 0 of a server
        self._self_test = SelfTest(comm, sums or comm)
        self._models: dict[int, Slice] = {}
        self._coming: dict[int, Group] = {}  # of models that are being read
        self.background = Background()
        self.while_reading: Callable[[], AbstractContextManager[None]] = nullcontext  # entered while it reads a slice
        self.announce: Callable[[str], None] = lambda line: None  # what went wrong without harm; rank 0's is called
        self.progress: Callable[[str, int, int], None] = lambda name, passed, total: None  # bytes of a load, anywhere

    def _compute(self, step: Step, watch: Watch = look_away) -> Output:
        """Return what `step` returns."""
        began = time.perf_counter()
        model = self._models[step.model]
        with self.activity.of("step"), self.background.resting():
            output = model.steps(step if self.comm.rank else replace(step, halved=self._cut), watch)
        model.meter.step(step.num_tokens, began)
        return output

    def examine(self, examine: Examine) -> list[Finding]:
        """Return what a self-test found on each rank; collective over the world."""
        with self.activity.of("test"):
            self.activity.gpus = self.place.gpus()
            decoders = {number: model.decoder for number, model in self._models.items()}
            caches = {number: model.cache for number, model in self._models.items()}
            return self._self_test(examine, decoders, caches, self.groups, self.place.device)

    @torch.inference_mode()
    def _probe(self, step: Step) -> str | None:
        """Return what `lead_probe` does, on the first rank of the group; collective."""
        broken: list[str] = []

        def watch(part: str, x: Tensor) -> None:
            if not torch.isfinite(x).all():
                broken.append(part)

        logits = self._compute(step, watch).logits
        if logits is not None:
            watch("the output head", logits)
        return broken[0] if broken else None

    def unload(self, unload: Unload) -> None:
        """Forget a model, also one that is being read, and free its memory beside the steps; collective over its group.

        One that is not there is ignored.
        """
        model = self._models.get(unload.model)
        self._self_test.forget(unload.model)
        group = self._coming.pop(unload.model, None) if model is None else model.group
        if group is None:
            return
        self.background.give_up(unload.model)
        if model is not None:
            del model  # or it would be there still when its memory is given back
            self._free(unload.model)
        self.groups.leave(group)

    def begin_check(self, check: Check, then: Callable[[Reply], None]) -> None:
        """Find out what this rank needs and has for a load; `then` gets it, or what forbids the load."""

        def work() -> Reply:
            """Return what was found."""
            memories, error = attempt(self.comm.rank, lambda: self._memories(check))
            return Reply(check.model, memories=memories or [], error=error, rank=self.comm.rank)

        self.background.put(work, then)

    def begin_load(self, load: Load, then: Callable[[Reply], None]) -> None:
        """Read this rank's slice beside its steps, or at once where `holds_up`; `then` gets what it holds, or an error.

        Collective over the group only as far as nobody waits for files, unless the load holds its ranks up.
        """
        group = self._coming[load.model] = self.groups.enter(load.ranks)
        meter = self.meters.of(load.name, group)
        reader = Reader(
            self.comm.rank, group, self._place(group), self.choice, meter, self._overlap, self.progress, self.background
        )
        work = partial(attempt, self.comm.rank, partial(self._read, load, reader))
        if not self.holds_up(load):
            self.activity.reads = True
            self.background.put(work, lambda found: then(self._taken(load, *found)), load.model)
            return
        self.background.close()
        with self.activity.of("load"):
            found = work()
        then(self._taken(load, *found))

    def holds_up(self, load: Load) -> bool:
        """Return whether the ranks of a load do nothing else meanwhile: all read together, or into a GPU."""
        return load.load == "scatter" or any(self.facts[rank].device != "cpu" for rank in self._of(load.ranks))

    def _read(self, load: Load, reader: Reader) -> tuple[Slice, LoadReport]:
        """Return this rank's slice and what it holds; collective over the group where all read together."""
        work = partial(self._load_slice, load, reader)
        if self.holds_up(load):
            return with_reading(reader.group.comm, load.load, work)
        return with_reading(reader.group.comm, load.load, work, self.background.pause)

    def _taken(self, load: Load, read: tuple[Slice, LoadReport] | None, error: str) -> Reply:
        """Return what becomes of a slice that was read, or was not: one that is not wanted any more is freed."""
        self.activity.reads = False
        if read is None:
            return Reply(load.model, error=error, rank=self.comm.rank)
        self._models[load.model], report = read
        if self._coming.pop(load.model, None) is None:
            self._free(load.model)
            return Reply(load.model, error=GIVEN_UP, rank=self.comm.rank)
        _log.info("%s: %d bytes read in %.1f s", load.name, report.read_bytes, report.seconds)
        return Reply(load.model, report=report, rank=self.comm.rank)

    def _free(self, number: int) -> None:
        """Forget a slice and free it, beside the steps where that takes long."""
        model = self._models.pop(number)
        if self.place.gpu is not None:
            model.decoder.residence.close()
            del model
            self.place.give_back()
        else:
            self.background.put(partial(release, model))
            self.background.put(self.place.give_back)

    def _memories(self, check: Check) -> list[RankMemory]:
        """Return what this rank needs for each replica that it has a part in; what it has to give counts once."""
        replicas = [ranks for ranks in check.replicas or [check.ranks] if self.comm.rank in self._of(ranks)]
        found = [self._memory(replace(check, ranks=ranks)) for ranks in replicas]
        return [*found[:1], *(replace(memory, promised_bytes=0, freed_bytes=0) for memory in found[1:])]

    def _memory(self, check: Check) -> RankMemory:
        """Return what this rank needs and has; raise ModelError where config or file headers are damaged."""
        ranks = list(self._of(check.ranks))
        shard = Shard(ranks.index(self.comm.rank), len(ranks))
        need = needed(check, shard, self.place.gpu is not None, partial(self.place.arithmetic, check, self.choice))
        leaving = [model for number, model in self._models.items() if number in check.leaving]
        staying = [model for number, model in self._models.items() if number not in check.leaving]
        return RankMemory(
            host=self.facts[self.comm.rank].host,
            holder=self.place.holder,
            fixed_bytes=need.fixed_bytes,
            block_bytes=need.block_bytes,
            free_bytes=self.place.free_bytes(),
            promised_bytes=sum(m.cache.size_bytes - m.cache.taken_bytes for m in staying),
            freed_bytes=sum(m.decoder.size_bytes + m.cache.taken_bytes for m in leaving),
            files=need.files,
            own_bytes=self.place.own_bytes(),
        )

    def _load_slice(self, load: Load, reader: Reader, reading: Reading) -> tuple[Slice, LoadReport]:
        """Read this rank's slice and make its cache; return it and what it holds."""
        try:
            with self.while_reading():
                return reader.read(load, reading)
        except Damaged as e:
            path, what = e.path, str(e)
        path.unlink(missing_ok=True)  # here nothing of the first try is held any more
        model, report = reader.read(load, reading)
        return model, replace(report, note=f"{what}; it was written anew")

    def _place(self, group: Group) -> Placement:
        """Return where this rank computes as one of a group."""
        if group is self.groups.world:
            return self.place
        return replace(self.place, where=group.where, graphs=self.place.graphs if group.records else None)

    def _of(self, ranks: Sequence[int]) -> Sequence[int]:
        """Return the ranks, all where none are named."""
        return ranks or self.groups.world.ranks
