"""Hold what rank 0 knows of one replica of a model: its scheduler, pace and cache, and what its ranks hold."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ollampi.mpiruntime.block_manager import BlockManager
from ollampi.mpiruntime.draft_model import DraftModel
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.metrics import ModelCounts
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.pace import Pace
from ollampi.mpiruntime.request import LoadedModel, ModelRef
from ollampi.mpiruntime.scheduler import Scheduler
from ollampi.mpiruntime.step import Load
from ollampi.mpiruntime.synchronization import is_approximate, told

MAX_DRAFTS = 16


@dataclass
class Stay:
    """How long a model stays once idle, negative for ever, and when it was used last, by time.monotonic."""

    default_s: float
    keep_s: float
    last_used: float = field(default_factory=time.monotonic)


class HostedModel:
    """A replica of a model in memory on the ranks of a group.

    stay: how long its model stays, of all its replicas; copy: how many of these before it lie on the same ranks.
    """

    def __init__(
        self,
        number: int,
        ref: ModelRef,
        config: ModelConfig,
        load: Load,
        reports: list[LoadReport],
        settings: EngineSettings,
        stay: Stay,
        counts: ModelCounts,
        copy: int = 0,
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
        self.pace = pace = Pace()
        self.scheduler = Scheduler(
            BlockManager(load.num_blocks, load.block_size),
            settings.max_step_tokens,
            settings.max_running,
            settings.max_queue,
            lambda num_decoding: pace.prompt_room(
                num_decoding, settings.max_stretch
            ),  # not self, which would be a cycle
            counts,
            config.encoder,
        )
        self.counts = counts
        self.outcomes = counts.of_replica(self.ranks, copy)
        self.stay = stay
        self.closed = False  # takes no new requests
        self.gone = False  # the ranks hold it no more
        self.under_way = False  # a step was sent to ranks that compute it without rank 0

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

    @property
    def ranks(self) -> tuple[int, ...]:
        """Return the ranks that hold it."""
        return tuple(report.rank for report in self.reports)

    @property
    def idle(self) -> bool:
        """Return whether there is no work for it, and none under way."""
        return self.scheduler.idle and not self.under_way

    @property
    def keep_s(self) -> float:
        """Return how long the model stays once idle."""
        return self.stay.keep_s

    def keep(self, keep_alive_s: float | None) -> None:
        """Set how long the model stays once idle: the value sent last wins, None is the default."""
        self.stay.keep_s = self.stay.default_s if keep_alive_s is None else keep_alive_s
        self.touch()

    def touch(self) -> None:
        """Start the time over which the model stays."""
        self.stay.last_used = time.monotonic()

    def expired(self, now: float) -> bool:
        """Return whether the replica is idle and the model's time is over."""
        return self.idle and 0 <= self.keep_s <= now - self.stay.last_used

    def listing(self) -> LoadedModel:
        """Return what /api/ps tells of the model."""
        drafting = self.draft.reports if self.draft else []
        left = None if self.keep_s < 0 else self.keep_s - (time.monotonic() - self.stay.last_used)
        return LoadedModel(
            name=self.ref.name,
            path=self.ref.path,
            size_bytes=sum(r.held_bytes for r in [*self.reports, *drafting]),
            gpu_bytes=sum(r.gpu_bytes for r in [*self.reports, *drafting]),
            context_length=self.context,
            expires_at=None if left is None else time.time() + max(0.0, left),
            note=self.synchronization if self.is_approximate else "",
        )
