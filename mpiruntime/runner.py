"""Do on every rank what rank 0 says: load, step, unload, until told to stop."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ollampi.kernels.choice import NATIVE, Choice
from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.cache_size import RankMemory, Room, room
from ollampi.mpiruntime.checkpoint import open_checkpoint
from ollampi.mpiruntime.cluster import Network
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.decoder import Decoder, Output
from ollampi.mpiruntime.decoder_layer import Cut, Watch, look_away
from ollampi.mpiruntime.errors import ModelError, OllampiError
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.layer_file import Damaged
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.log_files import set_level
from ollampi.mpiruntime.meters import Meters, ModelMeter
from ollampi.mpiruntime.model_config import is_idle, paired_heads, read_config
from ollampi.mpiruntime.needed import needed
from ollampi.mpiruntime.overlap import Halving
from ollampi.mpiruntime.placement import placement
from ollampi.mpiruntime.reading import Reading, with_reading
from ollampi.mpiruntime.request import Sample
from ollampi.mpiruntime.residence import closed_on_error
from ollampi.mpiruntime.same_files import check_same
from ollampi.mpiruntime.self_test import Finding, SelfTest
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.slice_parts import empty_cache, kept_shards
from ollampi.mpiruntime.step import (
    Check,
    Examine,
    Load,
    LogFrom,
    Message,
    Recall,
    Report,
    Step,
    Stop,
    Unload,
    decode,
    encode,
)
from ollampi.mpiruntime.stepping import Steps
from ollampi.mpiruntime.streaming import key_of, remedy, residence
from ollampi.mpiruntime.synchronization import sums_once
from ollampi.mpiruntime.trace import Trace
from ollampi.mpiruntime.vitals import Activity
from ollampi.mpiruntime.weights import Loaded
from ollampi.mpiruntime.world import RankFacts

_log = logging.getLogger(__name__)
_NOT_KEPT = "load=scatter keeps no quantised weights in the folder of cache=; use load=slices to keep them"


@dataclass(frozen=True)
class _Loaded:
    """One model on this rank."""

    decoder: Decoder
    cache: KVCache
    meter: ModelMeter
    steps: Steps


class Runner:
    """The models of one rank. All ranks call `lead` (rank 0) or `follow` (the others) and so act alike.

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
        self.network: Network | None = None  # what was measured at the start, if anything was
        self.choice = choice
        self.meters = Meters(comm, facts, trace, sums)
        self.shard = Shard(comm.rank, comm.size)
        self.place = placement(facts[comm.rank], comm.size == 1)
        self.activity = Activity()
        self.health: Health | None = None  # on rank 0 of a server
        self._self_test = SelfTest(comm, sums or comm)
        self._models: dict[int, _Loaded] = {}
        self.while_reading: Callable[[], AbstractContextManager[None]] = nullcontext  # entered while it reads a slice
        self.announce: Callable[[str], None] = lambda line: None  # what went wrong without harm; every rank's is called
        self.progress: Callable[[str, int, int], None] = lambda name, passed, total: None  # bytes of a load, likewise

    def send(self, step: Step) -> None:
        """Send a step to all ranks; rank 0 then takes part in it with `step`. Rank 0 only."""
        self._cut = self._models[step.model].steps.cuts(step)
        self.comm.broadcast(encode(replace(step, halved=self._cut)))

    def lead_load(self, load: Load) -> list[LoadReport]:
        """Load a model on all ranks; return what each holds. Rank 0 only, collective.

        Raise ModelError where a rank cannot; then no rank holds the model.
        """
        self.comm.broadcast(encode(load))
        return self.load(load)

    def lead_check(self, check: Check) -> Room:
        """Return how many cache blocks a load can have, and how many layers are streamed. Rank 0 only, collective.

        Raise ModelError where config, files or free memory of any rank forbid the load.
        """
        self.comm.broadcast(encode(check))
        return self.check(check)

    def lead_report(self) -> list[Sample]:
        """Return the samples of all ranks. Rank 0 only, collective."""
        self.comm.broadcast(encode(Report()))
        return self.meters.samples()

    def lead_examine(self, examine: Examine) -> list[Finding]:
        """Return what a self-test found on each rank. Rank 0 only, collective."""
        self.comm.broadcast(encode(examine))
        return self.examine(examine)

    def lead_recall(self, recall: Recall) -> list[bytes]:
        """Return the traced events of each rank as JSON without brackets. Rank 0 only, collective."""
        self.comm.broadcast(encode(recall))
        return self.meters.events(recall.zero)

    def lead(self, message: Unload | LogFrom | Stop) -> None:
        """Send any other message to all ranks and act on it. Rank 0 only."""
        self.comm.broadcast(encode(message))
        if not isinstance(message, Stop):
            self._act(message)

    def follow(self) -> None:
        """Act on what rank 0 sends until it says stop. All ranks but 0."""
        while not isinstance(message := decode(self.comm.broadcast(None)), Stop):
            self._act(message)

    def _act(self, message: Message) -> None:
        """Act on one message; a model that cannot be loaded is rank 0's to report."""
        if isinstance(message, Step):
            self.step(message)
        elif isinstance(message, Unload):
            self.unload(message)
        elif isinstance(message, LogFrom):
            set_level(message.level)
        elif isinstance(message, Report):
            self.meters.samples()
        elif isinstance(message, Examine):
            self.examine(message)
        elif isinstance(message, Recall):
            self.meters.events(message.zero)
        elif isinstance(message, Load):
            with suppress(ModelError):
                self.check(message) if isinstance(message, Check) else self.load(message)

    @torch.inference_mode()
    def step(self, step: Step) -> Output:
        """Return what the step's chunks ask for on rank 0, nothing elsewhere; collective."""
        return self._compute(step)

    def _compute(self, step: Step, watch: Watch = look_away) -> Output:
        """Return what `step` returns."""
        began = time.perf_counter()
        model = self._models[step.model]
        with self.activity.of("step"):
            output = model.steps(step if self.comm.rank else replace(step, halved=self._cut), watch)
        model.meter.step(step.num_tokens, began)
        return output

    def examine(self, examine: Examine) -> list[Finding]:
        """Return what a self-test found on each rank; collective."""
        with self.activity.of("test"):
            self.activity.gpus = self.place.gpus()
            decoders = {number: model.decoder for number, model in self._models.items()}
            return self._self_test(examine, decoders, self.place.device)

    @torch.inference_mode()
    def lead_probe(self, step: Step) -> str | None:
        """Return the first part of the model whose values are not finite in a step, or None. Rank 0 only, collective.

        To the other ranks it is a step like any other.
        """
        broken: list[str] = []

        def watch(part: str, x: Tensor) -> None:
            if not torch.isfinite(x).all():
                broken.append(part)

        self.send(step)
        logits = self._compute(step, watch).logits
        if logits is not None:
            watch("the output head", logits)
        return broken[0] if broken else None

    def unload(self, unload: Unload) -> None:
        """Free the memory of a model; one that is not loaded is ignored."""
        model = self._models.pop(unload.model, None)
        self._self_test.weights.forget(unload.model)
        if model is not None:
            model.decoder.residence.close()
            del model
            self.place.give_back()

    def check(self, check: Check) -> Room:
        """Return the cache blocks that the load can have and the layers to stream, equal on all ranks; collective.

        Raise ModelError on every rank where any rank sees that the load would fail.
        """
        try:
            mine = agree(self.comm, lambda: self._memory(check))
        except OllampiError as e:
            raise ModelError(str(e)) from e
        ranks = [RankMemory(**json.loads(m)) for m in self.comm.collect(json.dumps(asdict(mine)).encode())]
        check_same([rank.host for rank in ranks], [rank.files for rank in ranks])
        paths = " and ".join([check.path, *check.drafts])
        what = f"{paths} with dtype={check.dtype} and {check.num_blocks * check.block_size} cache tokens"
        sizes = check.num_blocks, check.most_blocks, check.fraction
        return room(ranks, *sizes, what, remedy(check, self.place.gpu is not None), check.stream == "always")

    def load(self, load: Load) -> list[LoadReport]:
        """Load this rank's slice; return what all ranks hold; collective.

        Raise ModelError on every rank where any rank cannot, with the first such rank's message.
        """
        try:
            work = partial(self._load_slice, load)
            with self.activity.of("load"):
                report = agree(self.comm, lambda: with_reading(self.comm, load.load, work))
        except OllampiError as e:
            self.unload(Unload(load.model))
            raise ModelError(str(e)) from e
        _log.info("%s: %d bytes read in %.1f s", load.name, report.read_bytes, report.seconds)
        reports = [LoadReport(**json.loads(m)) for m in self.comm.collect(json.dumps(asdict(report)).encode())]
        for note in [report.note for report in reports if report.note][:1]:
            self.announce(note)
        return reports

    def _memory(self, check: Check) -> RankMemory:
        """Return what this rank needs and has; raise ModelError where config or file headers are damaged."""
        need = needed(check, self.shard, self.place.gpu is not None, partial(self.place.arithmetic, check, self.choice))
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
        began = time.monotonic()
        config = read_config(Path(load.path))
        checkpoint = open_checkpoint(Path(load.path), load.adapters, paired_heads(config))
        checkpoint.reading, checkpoint.progress = reading, partial(self.progress, load.name)
        dtype = getattr(torch, load.dtype)
        meter = self.meters.of(load.name)
        how = self.place.arithmetic(load, self.choice, config)
        shards = kept_shards(load, checkpoint, self.shard)
        joint = sums_once(config, load.points, load.deterministic)
        cut = Cut(self.shard, meter.comm, meter.sums, load.experts == "spread", joint)
        place = residence(load, checkpoint, config, self.shard)
        form = dtype, how, load.quantize, checkpoint.sources, "", place, self.place.device
        kept = Loaded(*form, checkpoint=checkpoint, shards=shards)
        with closed_on_error(place):
            decoder = Decoder(kept, config, cut, load.context)
        checkpoint.finish()
        cache = empty_cache(load, config, self.shard, self.place, dtype)
        steps = self.place.steps(decoder, cache, Halving(self._overlap, self.facts))
        self._models[load.model] = _Loaded(decoder, cache, meter, steps)
        if shards is not None and shards.incomplete and shards.key == key_of(checkpoint):  # else it changed meanwhile
            shards.save()
        heads, kv_heads = self.shard.heads(config.num_heads, config.num_kv_heads)
        return LoadReport(
            rank=self.comm.rank,
            heads=(heads.start, heads.stop),
            kv_heads=(kv_heads.start, kv_heads.stop),
            weight_bytes=decoder.size_bytes,
            cache_bytes=cache.size_bytes,
            read_bytes=reading.bytes_read + (shards.bytes_read if shards else 0),
            unread=sorted(name for name in checkpoint.unread if not is_idle(config, name)),
            seconds=time.monotonic() - began,
            formats=decoder.formats,
            device=str(self.place.device),
            note=shards.note if shards else _NOT_KEPT if load.shard_cache and load.load == "scatter" else "",
            step_bytes=place.step_bytes,
        )
