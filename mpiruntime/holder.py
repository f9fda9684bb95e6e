"""Hold the models of one rank: read their slices with the other ranks of their groups, and compute their steps."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from ollampi.kernels.choice import NATIVE, Choice
from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.cache_size import RankMemory, Room, room
from ollampi.mpiruntime.cluster import Network
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.decoder import Output
from ollampi.mpiruntime.decoder_layer import Watch, look_away
from ollampi.mpiruntime.errors import ModelError, OllampiError
from ollampi.mpiruntime.groups import Group, part_of, plain_groups
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.layer_file import Damaged
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.meters import Meters
from ollampi.mpiruntime.needed import needed
from ollampi.mpiruntime.placement import Placement, placement
from ollampi.mpiruntime.reading import Reading, with_reading
from ollampi.mpiruntime.same_files import check_same
from ollampi.mpiruntime.self_test import Finding, SelfTest
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.slices import Reader, Slice
from ollampi.mpiruntime.step import Check, Examine, Load, Step, Unload
from ollampi.mpiruntime.streaming import remedy
from ollampi.mpiruntime.token_cost import ASSUMED
from ollampi.mpiruntime.trace import Trace
from ollampi.mpiruntime.vitals import Activity
from ollampi.mpiruntime.world import RankFacts

_log = logging.getLogger(__name__)


class Holder:
    """The models of one rank. Every call but `unload` is collective over the group of its model.

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
        self.while_reading: Callable[[], AbstractContextManager[None]] = nullcontext  # entered while it reads a slice
        self.announce: Callable[[str], None] = lambda line: None  # what went wrong without harm; every rank's is called
        self.progress: Callable[[str, int, int], None] = lambda name, passed, total: None  # bytes of a load, likewise

    def _compute(self, step: Step, watch: Watch = look_away) -> Output:
        """Return what `step` returns."""
        began = time.perf_counter()
        model = self._models[step.model]
        with self.activity.of("step"):
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
        """Free the memory of a model, collective over its group; one that is not loaded is ignored."""
        model = self._models.pop(unload.model, None)
        self._self_test.forget(unload.model)
        if model is not None:
            group = model.group
            model.decoder.residence.close()
            del model
            self.groups.leave(group)
            self.place.give_back()

    def check(self, check: Check) -> Room:
        """Return the cache blocks that each replica can have and the layers to stream, equal on its ranks; collective.

        Raise ModelError on each of them where any sees that the load would fail.
        """
        everybody = tuple(self._of(check.ranks)) == self.groups.world.ranks
        comm = self.comm if everybody else part_of(self.comm, check.ranks)
        try:
            mine = agree(comm, lambda: self._memories(check), number=self.comm.rank)
            told = [json.loads(m) for m in comm.collect(json.dumps([asdict(memory) for memory in mine]).encode())]
        except OllampiError as e:
            raise ModelError(str(e)) from e
        finally:
            if comm is not self.comm:
                comm.leave()
        owners = [rank for rank, each in zip(self._of(check.ranks), told, strict=True) for _ in each]
        ranks = [RankMemory(**memory) for each in told for memory in each]
        firsts = {rank.host: place for place, rank in reversed(list(enumerate(ranks)))}
        for host, place in firsts.items():
            promised = ranks[place].promised_bytes + check.beside.get(host, 0)
            ranks[place] = replace(ranks[place], promised_bytes=promised)
        check_same([rank.host for rank in ranks], [rank.files for rank in ranks], owners)
        paths = " and ".join([check.path, *check.drafts])
        what = f"{paths} with dtype={check.dtype} and {check.num_blocks * check.block_size} cache tokens"
        what += f" in each of {len(check.replicas)} replicas" if len(check.replicas) > 1 else ""
        sizes = check.num_blocks, check.most_blocks, check.fraction
        more = remedy(check, self.place.gpu is not None), check.stream == "always", check.block_size
        return room(ranks, *sizes, what, *more)

    def load(self, load: Load) -> list[LoadReport]:
        """Load this rank's slice; return what all ranks of the group hold; collective.

        Raise ModelError on each of them where any cannot, with the first such rank's message.
        """
        group = self.groups.enter(load.ranks)
        try:
            work = partial(self._load_slice, load)
            with self.activity.of("load"):
                read = partial(with_reading, group.comm, load.load, work)
                report = agree(group.comm, read, number=self.comm.rank)
        except OllampiError as e:
            if load.model not in self._models:
                self.groups.leave(group)
            self.unload(Unload(load.model))
            raise ModelError(str(e)) from e
        _log.info("%s: %d bytes read in %.1f s", load.name, report.read_bytes, report.seconds)
        reports = [LoadReport(**json.loads(m)) for m in group.comm.collect(json.dumps(asdict(report)).encode())]
        for note in [report.note for report in reports if report.note][:1]:
            self.announce(note)
        return reports

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

    def _load_slice(self, load: Load, reading: Reading) -> LoadReport:
        """Read this rank's slice and make its cache; return what it holds."""
        try:
            with self.while_reading():
                return self._read_slice(load, reading)
        except Damaged as e:
            path, what = e.path, str(e)
        path.unlink(missing_ok=True)  # here nothing of the first try is held any more
        return replace(self._read_slice(load, reading), note=f"{what}; it was written anew")

    def _read_slice(self, load: Load, reading: Reading) -> LoadReport:
        """Return what `_load_slice` does; raise Damaged for a file that can be written anew."""
        group = self.groups.of(load.ranks)
        meter = self.meters.of(load.name, group)
        where = self._place(group), self.choice, meter, self._overlap
        self._models[load.model], report = Reader(self.comm.rank, group, *where, self.progress).read(load, reading)
        return report

    def _place(self, group: Group) -> Placement:
        """Return where this rank computes as one of a group."""
        if group is self.groups.world:
            return self.place
        return replace(self.place, where=group.where, graphs=self.place.graphs if group.records else None)

    def _of(self, ranks: Sequence[int]) -> Sequence[int]:
        """Return the ranks, all where none are named."""
        return ranks or self.groups.world.ranks
