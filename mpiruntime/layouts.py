"""Return where a model shall lie: on all ranks that hold weights, or as somebody wished. Rank 0 only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.placing import Placer
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.strategy import Chooser, Layout
from ollampi.mpiruntime.synchronization import num_sums


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

    def chosen(self, ref: ModelRef, wish: Wish, hosted: Sequence[HostedModel], gone: Sequence[HostedModel]) -> Layout:
        """Return the layout for a wish; raise RequestError or ModelError.

        hosted: all that is in memory; gone: what will have left by then.
        """
        config, settings = self.placer.runner.beside(lambda: read_config(Path(ref.path))), self.settings
        held: dict[int, int] = {}
        for report in [report for model in hosted for report in model.reports]:
            held[report.rank] = held.get(report.rank, 0) + report.held_bytes
        fits = self.placer.fits(ref, wish.context, hosted, gone)
        dtype = "bfloat16" if settings.dtype == "bfloat16" else "float32"
        size = shard_size(config, Shard(0, 1), dtype).total_bytes
        sums = num_sums(config, self.points, settings.deterministic)
        facts = self.placer.runner.facts
        return Chooser(facts, self.usable, held, config, size, sums, settings, fits).choose(wish)
