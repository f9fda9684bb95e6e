"""Load one replica of a model on the ranks of a group: what it takes first, then its weights. Rank 0 only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.hosted_model import HostedModel, Stay
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.metrics import ModelCounts
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Check, Load, Unload

Groups = Sequence[Sequence[int]]  # the ranks of each replica
DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}


class Placer:
    """What loads have in common. points: as ExchangeSettings.synchronization_points; counts: of all models by name.

    Each load has a number of its own, by which the ranks know the model.
    """

    def __init__(self, runner: Runner, points: str, counts: dict[str, ModelCounts]) -> None:
        self.runner = runner
        self._points = points
        self._counts = counts
        self._next_number = 0

    def check(
        self,
        ref: ModelRef,
        groups: Groups,
        context: int | None,
        settings: EngineSettings,
        leaving: Iterable[HostedModel] = (),
        staying: Iterable[HostedModel] = (),
        drafts: Sequence[str] = (),
    ) -> Load:
        """Return how the first replica is to be loaded, where all of them fit together once others have left.

        groups: the ranks of each replica; staying: all that is in memory; drafts: paths of models that will draft for
        it. Raise ModelError.
        """
        load = self._load(ref, groups[0], context, settings)
        gone, ranks = list(leaving), self._listed(sorted({rank for group in groups for rank in group}))
        check = Check(
            **{**asdict(load), "ranks": ranks},
            most_blocks=load.num_blocks * (settings.max_running if settings.cache_tokens is None else 1),
            fraction=settings.cache_fraction,
            leaving=[number for model in gone for number in model.numbers()],
            drafts=list(drafts),
            stream=settings.stream,
            beside=self._promised([model for model in staying if model not in gone], ranks),
            replicas=[list(group) for group in groups],
        )
        return replace(load, **asdict(self.runner.lead_check(check)))

    def next(self, load: Load, ranks: Sequence[int], settings: EngineSettings, staying: Iterable[HostedModel]) -> Load:
        """Return how a further replica is to be loaded, as the first one was; raise ModelError.

        It was checked with the first one: this finds memory that went elsewhere since.
        """
        own = replace(load, model=self._number(), ranks=self._listed(ranks))
        beside = self._promised(staying, own.ranks)
        check = Check(**asdict(own), most_blocks=own.num_blocks, stream=settings.stream, beside=beside)
        return replace(own, **asdict(self.runner.lead_check(check)))

    def hosted(
        self,
        ref: ModelRef,
        load: Load,
        reports: list[LoadReport],
        settings: EngineSettings,
        stay: Stay,
        done: Sequence[HostedModel] = (),
    ) -> HostedModel:
        """Return what rank 0 knows of a replica that has been loaded; raise ModelError where its config is gone.

        done: those of the model that were before.
        """
        try:
            config = self.runner.beside(lambda: read_config(Path(load.path)))
        except ModelError:
            self.runner.lead(Unload(load.model))
            raise
        counts = self._counts.setdefault(ref.name, ModelCounts())
        copy = sum(model.ranks == tuple(report.rank for report in reports) for model in done)
        return HostedModel(load.model, ref, config, load, reports, settings, stay, counts, copy)

    def draft(self, ref: ModelRef, hosted: HostedModel, load: Load) -> Load:
        """Return how the model that drafts for another one is to be loaded on the same ranks; raise ModelError."""
        config = self.runner.beside(lambda: read_config(Path(ref.path)))
        if config.vocab_size != hosted.config.vocab_size:
            raise ModelError(
                f"the draft model {ref.name} has {config.vocab_size} tokens and {hosted.ref.name}"
                f" {hosted.config.vocab_size}; choose one with the same tokenizer"
            )
        if not config.has_head:
            raise ModelError(f"the draft model {ref.name} makes embeddings only; choose one with an output head")
        length = min(load.context, config.max_context)
        draft = replace(load, model=self._number(), path=ref.path, context=length, name=ref.name, adapters=[])
        draft = replace(draft, num_streamed=0)  # it shall be fast
        self.runner.lead_check(Check(**asdict(draft)))
        return draft

    def _number(self) -> int:
        """Return the next model's number."""
        self._next_number += 1
        return self._next_number - 1

    def _load(self, ref: ModelRef, ranks: Sequence[int], context: int | None, settings: EngineSettings) -> Load:
        """Return the message of a load with the least cache."""
        config = self.runner.beside(lambda: read_config(Path(ref.path)))
        length = min(max(context or 0, settings.context_length), config.max_context)
        return Load(
            model=self._number(),
            path=ref.path,
            dtype=DTYPES.get(config.dtype, "float32") if settings.dtype == "auto" else settings.dtype,
            context=length,
            num_blocks=-(-max(settings.cache_tokens or 0, length) // settings.block_size),
            block_size=settings.block_size,
            name=ref.name,
            deterministic=settings.deterministic,
            cache_dtype=settings.cache_dtype,
            quantize="none" if settings.deterministic and settings.quantize == "auto" else settings.quantize,
            shard_cache=settings.shard_cache,
            adapters=list(ref.adapters),
            experts=settings.experts,
            load=settings.load,
            points=self._points,
            prefetch_factor=settings.prefetch_factor,
            ranks=self._listed(ranks),
        )

    def _listed(self, ranks: Sequence[int]) -> list[int]:
        """Return ranks as messages name them: none are all."""
        return [] if tuple(ranks) == self.runner.groups.world.ranks else list(ranks)

    def _promised(self, models: Iterable[HostedModel], ranks: Sequence[int]) -> Mapping[str, int]:
        """Return by host what caches may still take on ranks that are not asked, since a load does not concern them.

        Blocks are handed out lowest first, and their memory is taken when they are first written.
        """
        concerned = tuple(ranks) or self.runner.groups.world.ranks
        found: dict[str, int] = {}
        for model in models:
            unused = model.scheduler.blocks.unused_part
            for report in model.reports:
                if report.rank not in concerned and report.device == "cpu":
                    host = self.runner.facts[report.rank].host
                    found[host] = found.get(host, 0) + int(unused * report.cache_bytes)
        return found
