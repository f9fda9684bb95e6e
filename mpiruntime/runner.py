"""Do on every rank what rank 0 says: load, step, unload, until told to stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ollampi.kernels.choice import NATIVE, Choice
from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.arithmetic import Arithmetic, arithmetic
from ollampi.mpiruntime.batch import make_batch
from ollampi.mpiruntime.cache_size import RankMemory, cache_blocks
from ollampi.mpiruntime.checkpoint import Checkpoint, open_checkpoint
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.decoder import Cut, Decoder, Output, Watch, look_away
from ollampi.mpiruntime.errors import ModelError, OllampiError
from ollampi.mpiruntime.heap import give_back
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.memory import RUNTIME_BYTES, cache_bytes, check_groups, is_quantised
from ollampi.mpiruntime.meters import Meters, ModelMeter
from ollampi.mpiruntime.model_config import ModelConfig, is_idle, read_config
from ollampi.mpiruntime.plan import shard_bytes
from ollampi.mpiruntime.reading import Reading, with_reading
from ollampi.mpiruntime.request import Sample
from ollampi.mpiruntime.same_files import check_same, digests
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.shard_file import ShardFile, checkpoint_key, shard_path
from ollampi.mpiruntime.step import Check, Load, Message, Recall, Report, Step, Stop, Unload, decode, encode
from ollampi.mpiruntime.trace import Trace
from ollampi.mpiruntime.weights import Loaded
from ollampi.mpiruntime.world import RankFacts, free_memory

_NOT_KEPT = "load=scatter keeps no quantised weights in the folder of cache=; use load=slices to keep them"


@dataclass(frozen=True)
class LoadReport:
    """What one rank holds after loading: query and KV heads as [first, last), sizes, and what it read from disk.

    formats: what its matrices are kept in, as kernels.choice names formats, what takes most first; note: what an
    operator should know of its file of quantised weights.
    """

    rank: int
    heads: tuple[int, int]
    kv_heads: tuple[int, int]
    weight_bytes: int
    cache_bytes: int
    read_bytes: int
    unread: list[str]
    seconds: float
    formats: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class _Loaded:
    """One model on this rank."""

    decoder: Decoder
    cache: KVCache
    meter: ModelMeter


class Runner:
    """The models of one rank. All ranks call `lead` (rank 0) or `follow` (the others) and so act alike.

    trace: where the steps are recorded; all ranks have one, or none. choice: the kernels, the same on all ranks.
    """

    def __init__(
        self, comm: Communicator, facts: list[RankFacts], trace: Trace | None = None, choice: Choice = NATIVE
    ) -> None:
        self.comm = comm
        self.facts = facts
        self.trace = trace
        self.choice = choice
        self.meters = Meters(comm, facts, trace)
        self.shard = Shard(comm.rank, comm.size)
        self.device = torch.device("cpu")
        self._models: dict[int, _Loaded] = {}
        self.announce: Callable[[str], None] = lambda line: None  # what went wrong without harm; every rank's is called
        self.progress: Callable[[str, int, int], None] = lambda name, passed, total: None  # bytes of a load, likewise

    def send(self, step: Step) -> None:
        """Send a step to all ranks; rank 0 then takes part in it with `step`. Rank 0 only."""
        self.comm.broadcast(encode(step))

    def lead_load(self, load: Load) -> list[LoadReport]:
        """Load a model on all ranks; return what each holds. Rank 0 only, collective.

        Raise ModelError where a rank cannot; then no rank holds the model.
        """
        self.comm.broadcast(encode(load))
        return self.load(load)

    def lead_check(self, check: Check) -> int:
        """Return how many cache blocks a load can have. Rank 0 only, collective.

        Raise ModelError where config, files or free memory of any rank forbid the load.
        """
        self.comm.broadcast(encode(check))
        return self.check(check)

    def lead_report(self) -> list[Sample]:
        """Return the samples of all ranks. Rank 0 only, collective."""
        self.comm.broadcast(encode(Report()))
        return self.meters.samples()

    def lead_recall(self, recall: Recall) -> list[bytes]:
        """Return the traced events of each rank as JSON without brackets. Rank 0 only, collective."""
        self.comm.broadcast(encode(recall))
        return self.meters.events(recall.zero)

    def lead(self, message: Unload | Stop) -> None:
        """Send any other message to all ranks and act on it. Rank 0 only."""
        self.comm.broadcast(encode(message))
        if isinstance(message, Unload):
            self.unload(message)

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
        elif isinstance(message, Report):
            self.meters.samples()
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
        sizes = model.cache.block_size, model.cache.slot_bytes
        batch = make_batch(step, *sizes, self.device, model.decoder.piece_tokens, model.decoder.both_ways)
        logits = model.decoder(batch, model.cache, watch)
        model.meter.step(len(batch.tokens), began)
        return logits

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
        if self._models.pop(unload.model, None) is not None:
            give_back()

    def check(self, check: Check) -> int:
        """Return how many cache blocks the load can have, the same on every rank; collective.

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
        return cache_blocks(ranks, check.num_blocks, check.most_blocks, check.fraction, what)

    def load(self, load: Load) -> list[LoadReport]:
        """Load this rank's slice; return what all ranks hold; collective.

        Raise ModelError on every rank where any rank cannot, with the first such rank's message.
        """
        try:
            work = partial(self._load_slice, load)
            report = agree(self.comm, lambda: with_reading(self.comm, load.load, work))
        except OllampiError as e:
            self.unload(Unload(load.model))
            raise ModelError(str(e)) from e
        reports = [LoadReport(**json.loads(m)) for m in self.comm.collect(json.dumps(asdict(report)).encode())]
        for note in [report.note for report in reports if report.note][:1]:
            self.announce(note)
        return reports

    def _memory(self, check: Check) -> RankMemory:
        """Return what this rank needs and has; raise ModelError where config or file headers are damaged."""
        fixed, block, files = 0, 0, dict[str, str]()
        for path, adapters in ((check.path, check.adapters), *((path, []) for path in check.drafts)):
            config, spread = read_config(Path(path)), check.experts == "spread"
            checkpoint = open_checkpoint(Path(path), adapters)
            sources = checkpoint.sources
            self._arithmetic(check, config)
            if is_quantised(check.quantize, sources):
                check_groups(config, self.shard, spread)
            fixed += shard_bytes(config, self.shard, check.dtype, check.quantize, spread, sources) + RUNTIME_BYTES
            block += cache_bytes(config, self.shard, check.block_size, check.kept)
            files |= digests(checkpoint.folder, checkpoint.files, checkpoint.adapters)
        leaving = [model for number, model in self._models.items() if number in check.leaving]
        staying = [model for number, model in self._models.items() if number not in check.leaving]
        return RankMemory(
            host=self.facts[self.comm.rank].host,
            fixed_bytes=fixed,
            block_bytes=block,
            free_bytes=free_memory(),
            promised_bytes=sum(m.cache.size_bytes - m.cache.taken_bytes for m in staying),
            freed_bytes=sum(m.decoder.size_bytes + m.cache.taken_bytes for m in leaving),
            files=files,
        )

    def _arithmetic(self, wanted: Check | Load, config: ModelConfig) -> Arithmetic:
        """Return what a model is to be computed with; raise ModelError where something forbids it."""
        context = config.max_context
        if wanted.deterministic and (config.encoder or config.experts or config.activation == "gelu"):
            raise ModelError(
                f"deterministic=true cannot compute a model of type {config.model_type}; use deterministic=false"
            )
        return arithmetic(wanted.deterministic, wanted.quantize, wanted.kept, context, self.device, self.choice)

    def _load_slice(self, load: Load, reading: Reading) -> LoadReport:
        """Read this rank's slice and make its cache; return what it holds."""
        began = time.monotonic()
        config = read_config(Path(load.path))
        checkpoint = open_checkpoint(Path(load.path), load.adapters)
        checkpoint.reading, checkpoint.progress = reading, partial(self.progress, load.name)
        dtype = getattr(torch, load.dtype)
        meter = self.meters.of(load.name)
        how = self._arithmetic(load, config)
        shards = self._shards(load, checkpoint)
        weights = Loaded(dtype, how, load.quantize, checkpoint.sources, checkpoint=checkpoint, shards=shards)
        decoder = Decoder(weights, config, Cut(self.shard, meter.comm, load.experts == "spread"), load.context)
        checkpoint.finish()
        cache = self._cache(config, load, dtype)
        self._models[load.model] = _Loaded(decoder, cache, meter)
        if shards is not None and shards.incomplete and shards.key == _key(checkpoint):  # else it changed meanwhile
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
            note=shards.note if shards else _NOT_KEPT if load.shard_cache and load.load == "scatter" else "",
        )

    def _shards(self, load: Load, checkpoint: Checkpoint) -> ShardFile | None:
        """Return where this rank's quantised matrices are kept, or None for nowhere."""
        if load.shard_cache is None or load.quantize == "none" or load.load == "scatter":
            return None
        rank, size = self.comm.rank, self.comm.size
        path = shard_path(load.shard_cache, checkpoint.folder, load.quantize, rank, size, checkpoint.adapters)
        return ShardFile(path, _key(checkpoint))

    def _cache(self, config: ModelConfig, load: Load, dtype: torch.dtype) -> KVCache:
        """Return an empty cache for this rank's KV heads."""
        _, kv_heads = self.shard.heads(config.num_heads, config.num_kv_heads)
        return KVCache(
            config.num_layers, load.num_blocks, load.block_size, len(kv_heads), config.head_dim, dtype, load.kept
        )


def _key(checkpoint: Checkpoint) -> str:
    """Return what a file of quantised matrices of the checkpoint is known by."""
    return checkpoint_key(checkpoint.folder, checkpoint.files, checkpoint.adapters)
