"""Keep the models that are in memory: load on demand, unload when their time is over. Rank 0 only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from ollampi.mpiruntime.block_manager import BlockManager
from ollampi.mpiruntime.draft_model import DraftModel
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.eviction import await_idle, in_order, make_room
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.log_files import SCHEDULER
from ollampi.mpiruntime.metrics import ModelCounts
from ollampi.mpiruntime.model_config import ModelConfig, read_config
from ollampi.mpiruntime.pace import Pace
from ollampi.mpiruntime.request import LoadedModel, ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.scheduler import Scheduler
from ollampi.mpiruntime.step import Check, Load, Unload
from ollampi.mpiruntime.synchronization import is_approximate, told

KEEP_ALIVE_S = 300.0
MAX_DRAFTS = 16
_log = logging.getLogger(SCHEDULER)
DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}


class HostedModel:
    """A model in memory on all ranks."""

    def __init__(
        self,
        number: int,
        ref: ModelRef,
        config: ModelConfig,
        load: Load,
        reports: list[LoadReport],
        settings: EngineSettings,
        default_keep_s: float,
        counts: ModelCounts,
    ) -> None:
        self.number = number
        self.ref = ref
        self.config = config
        self.context = load.context
        self.dtype = load.dtype
        self.exact_enough = load.dtype == "float32" or load.deterministic
        self.cache_tokens = load.num_blocks * load.block_size
        self.cache_dtype = load.kept
        self.synchronization = told(config, load.points, len(reports), load.deterministic)
        self.is_approximate = is_approximate(config, load.points, len(reports), load.deterministic)
        self.num_streamed = load.num_streamed
        self.reports = reports
        self.draft: DraftModel | None = None
        self.settings = settings
        self.pace = Pace()
        self.scheduler = Scheduler(
            BlockManager(load.num_blocks, load.block_size),
            settings.max_step_tokens,
            settings.max_running,
            settings.max_queue,
            lambda num_decoding: self.pace.prompt_room(num_decoding, settings.max_stretch),
            counts,
            config.encoder,
        )
        self.counts = counts
        self.default_keep_s = default_keep_s
        self.keep_s = default_keep_s
        self.last_used = time.monotonic()

    @property
    def idle(self) -> bool:
        """Return whether the model has no work."""
        return self.scheduler.idle

    def numbers(self) -> list[int]:
        """Return the numbers of all that the ranks hold for the model: its own and its draft model's."""
        return [self.number, *([self.draft.number] if self.draft else [])]

    def max_drafts(self, asked: int | None) -> int:
        """Return how many tokens may be proposed for one answer in a step, where a request asks for so many.

        In bf16 a token's logits depend visibly on how many go through the model together: there drafts are made for
        those only who ask for them, or for a draft model.
        """
        limit = self.settings.max_drafts
        if asked is not None:
            return min(asked, MAX_DRAFTS if limit is None else limit)
        if limit is None:
            return MAX_DRAFTS if self.exact_enough or self.draft is not None else 0
        return limit

    def keep(self, keep_alive_s: float | None) -> None:
        """Set how long the model stays once idle: the value sent last wins, None is the default."""
        self.keep_s = self.default_keep_s if keep_alive_s is None else keep_alive_s
        self.touch()

    def touch(self) -> None:
        """Start the time over which the model stays."""
        self.last_used = time.monotonic()

    def expired(self, now: float) -> bool:
        """Return whether the model is idle and its time is over."""
        return self.scheduler.idle and 0 <= self.keep_s <= now - self.last_used

    def listing(self) -> LoadedModel:
        """Return what /api/ps tells of the model."""
        drafting = self.draft.reports if self.draft else []
        left = None if self.keep_s < 0 else self.keep_s - (time.monotonic() - self.last_used)
        return LoadedModel(
            name=self.ref.name,
            path=self.ref.path,
            size_bytes=sum(r.held_bytes for r in [*self.reports, *drafting]),
            gpu_bytes=sum(r.gpu_bytes for r in [*self.reports, *drafting]),
            context_length=self.context,
            expires_at=None if left is None else time.time() + max(0.0, left),
            note=self.synchronization if self.is_approximate else "",
        )


_Some = Sequence[HostedModel]


class Models:
    """The models in memory by name."""

    def __init__(self, runner: Runner, settings: EngineSettings, points: str = "all") -> None:
        self.runner = runner
        self.points = points  # as ExchangeSettings.synchronization_points
        self.settings = settings
        self.counts: dict[str, ModelCounts] = {}  # by name; they outlive the model
        self._hosted: dict[str, HostedModel] = {}
        self._pinned: ModelRef | None = None
        self._draft: ModelRef | None = None
        self._staying: set[str] = set()  # names of those that were preloaded
        self._next_number = 0
        self.loading: ModelRef | None = None  # for those who look on from other threads
        self.while_loading: Callable[[], AbstractContextManager[None]] = nullcontext  # entered around each load

    def pin(self, ref: ModelRef, draft: ModelRef | None = None) -> HostedModel:
        """Load the model that the server was started for; it stays unless the settings or a request say otherwise.

        draft is a smaller model with the same tokens that drafts for it. Raise ModelError.
        """
        self._pinned, self._draft = ref, draft
        return self.get(ref)

    def get(self, ref: ModelRef, context: int | None = None) -> HostedModel:
        """Return the model, loading it where it is not there; where a request needs a larger context, load it anew.

        Raise ModelError where it cannot be loaded, and then all models are as before where config, files or memory
        are the reason; raise NotYet where a model that must go first has work.
        """
        if self._pinned is not None and (ref.name, ref.path) == (self._pinned.name, self._pinned.path):
            ref = self._pinned  # with its adapters, of which clients know nothing
        hosted = self._hosted.get(ref.name)
        if hosted is not None and hosted.ref == ref and min(context or 0, hosted.config.max_context) <= hosted.context:
            return hosted
        too_many = len(self._hosted) >= self.settings.max_loaded_models
        leaving = [hosted] if hosted is not None else in_order(self._hosted.values())[:too_many]
        await_idle(ref.name, leaving)
        return self._get_new(ref, context, leaving, in_order(m for m in self._hosted.values() if m not in leaving))

    def preload(self, ref: ModelRef) -> HostedModel:
        """Load a model that stays, beside those that are there; raise ModelError where there is no place for it."""
        self._staying.add(ref.name)
        if len(self._hosted) >= self.settings.max_loaded_models and ref.name not in self._hosted:
            raise ModelError(
                f"model {ref.name} of cluster.preload has no place beside {', '.join(self._hosted)}:"
                f" engine.max_loaded_models is {self.settings.max_loaded_models}; raise it, or preload fewer"
            )
        hosted = self._hosted.get(ref.name) or self._get_new(ref, None, [], [])
        hosted.keep_s = hosted.default_keep_s = -1.0
        return hosted

    def _get_new(self, ref: ModelRef, context: int | None, leaving: _Some, others: _Some) -> HostedModel:
        """Load a model; `leaving` go for it, and as many of `others` as memory takes."""
        with self.while_loading():
            try:
                self.loading = ref
                return self._load(ref, context, leaving, others)
            except ModelError as e:
                raise type(e)(f"model {ref.name}: {e}") from e
            finally:
                self.loading = None

    def busy(self) -> list[HostedModel]:
        """Return the models that have work."""
        return [m for m in self._hosted.values() if not m.scheduler.idle]

    def expire(self, now: float) -> None:
        """Unload every model whose time is over."""
        for hosted in [m for m in self._hosted.values() if m.expired(now)]:
            self._unload(hosted, f"idle for {hosted.keep_s:g} s")

    def unload_when_idle(self, name: str) -> None:
        """Unload a model, after its running requests where there are any; one that is not there is ignored."""
        if name in self._hosted:
            self._hosted[name].keep(0.0)
            self.expire(time.monotonic())

    def hosted(self) -> list[HostedModel]:
        """Return the models in memory."""
        return list(self._hosted.values())

    def listing(self) -> list[LoadedModel]:
        """Return what /api/ps tells of the models in memory."""
        return [m.listing() for m in self._hosted.values()]

    def _load(self, ref: ModelRef, context: int | None, leaving: _Some, others: _Some) -> HostedModel:
        """Load a model on all ranks in place of others, or in addition; raise NotYet where one of these has work."""
        config = read_config(Path(ref.path))
        settings = self.settings
        quantize = "none" if settings.deterministic and settings.quantize == "auto" else settings.quantize
        length = min(max(context or 0, settings.context_length), config.max_context)
        load = Load(
            model=self._next_number,
            path=ref.path,
            dtype=DTYPES.get(config.dtype, "float32") if settings.dtype == "auto" else settings.dtype,
            context=length,
            num_blocks=-(-max(settings.cache_tokens or 0, length) // settings.block_size),
            block_size=settings.block_size,
            name=ref.name,
            deterministic=settings.deterministic,
            cache_dtype=settings.cache_dtype,
            quantize=quantize,
            shard_cache=settings.shard_cache,
            adapters=list(ref.adapters),
            experts=settings.experts,
            load=settings.load,
            points=self.points,
            prefetch_factor=settings.prefetch_factor,
        )
        check = Check(
            **asdict(load),
            most_blocks=load.num_blocks * (settings.max_running if settings.cache_tokens is None else 1),
            fraction=settings.cache_fraction,
            drafts=[self._draft.path] if self._draft and ref == self._pinned else [],
            stream=settings.stream,
        )
        found, going = make_room(
            lambda some: self.runner.lead_check(replace(check, leaving=[n for m in some for n in m.numbers()])),
            leaving,
            others,
        )
        await_idle(ref.name, going)
        for each in going:
            self._unload(each, f"makes room for {ref.name}")
        load = replace(load, **asdict(found))
        reports = self.runner.lead_load(load)
        counts = self.counts.setdefault(ref.name, ModelCounts())
        hosted = HostedModel(load.model, ref, config, load, reports, settings, self._default_keep_s(ref), counts)
        self._next_number += 1
        self._hosted[ref.name] = hosted
        held, slowest_s = sum(r.held_bytes for r in reports), max(r.seconds for r in reports)
        _log.info("%s loaded: context %d, %s, %d bytes, %.1f s", ref.name, load.context, load.dtype, held, slowest_s)
        if ref == self._pinned and self._draft is not None:
            hosted.draft = self._load_draft(self._draft, hosted, load)
        return hosted

    def _load_draft(self, ref: ModelRef, hosted: HostedModel, load: Load) -> DraftModel:
        """Load the model that drafts for another one, which goes too where this one cannot be had."""
        try:
            config = read_config(Path(ref.path))
            if config.vocab_size != hosted.config.vocab_size:
                raise ModelError(
                    f"the draft model {ref.name} has {config.vocab_size} tokens and {hosted.ref.name}"
                    f" {hosted.config.vocab_size}; choose one with the same tokenizer"
                )
            if not config.has_head:
                raise ModelError(f"the draft model {ref.name} makes embeddings only; choose one with an output head")
            length = min(load.context, config.max_context)
            draft = replace(load, model=self._next_number, path=ref.path, context=length, name=ref.name, adapters=[])
            draft = replace(draft, num_streamed=0)  # it shall be fast
            self.runner.lead_check(Check(**asdict(draft)))
            reports = self.runner.lead_load(draft)
        except ModelError:
            self._unload(hosted, "its draft model cannot be had")
            raise
        self._next_number += 1
        return DraftModel(draft.model, length, self.settings.max_step_tokens, ref.name, reports)

    def _default_keep_s(self, ref: ModelRef) -> float:
        """Return how long a model stays where no request says so."""
        if ref.name in self._staying:
            return -1.0
        if self.settings.keep_alive_s is not None:
            return self.settings.keep_alive_s
        return -1.0 if ref == self._pinned else KEEP_ALIVE_S

    def _unload(self, hosted: HostedModel, why: str) -> None:
        """Free a model on all ranks."""
        _log.info("%s unloaded: %s", hosted.ref.name, why)
        del self._hosted[hosted.ref.name]
        for number in hosted.numbers():
            self.runner.lead(Unload(number))
