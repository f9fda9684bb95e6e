"""Estimate by the cost model what a token takes on some ranks, cut into each number of shards."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ollampi.mpiruntime.cost_fit import Fit
from ollampi.mpiruntime.cost_model import ASSUMED, Constants, Site, step_s
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.memory import check_groups, is_quantised
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.plan import Wanted, rank_plan
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.source import Source
from ollampi.mpiruntime.step_work import ModelWork


@dataclass(frozen=True)
class Estimated:
    """What a number of shards would do, on ranks of which each replica takes so many.

    hosts: of a replica; token_s: of one answer while nothing else runs, None for encoders; prompt_tokens_per_s: of one
    replica; tokens_per_s: of all replicas together, each with as many answers as were asked for; rank_bytes: of the
    busiest rank; fits: into the memory of the hosts.
    """

    shards: int
    replicas: int
    hosts: int
    token_s: float | None
    prompt_tokens_per_s: float
    tokens_per_s: float | None
    rank_bytes: int
    fits: bool


@dataclass(frozen=True)
class Assumptions:
    """What estimates rest on. local: ranks of a host; position: of the answers; fitted: whether constants are."""

    constants: Constants
    fitted: bool
    local: int
    cores: int
    level: int
    streams: int
    prompt: int
    position: int


def assumptions(values: Mapping[str, Any], found: Fit | None, cores: int, context: int) -> Assumptions:
    """Return what the options say, and where they do not, what was fitted on this machine, else what is usual."""
    constants = ASSUMED if found is None else found.constants
    if values["latency_us"] is not None:
        constants = replace(constants, far_trip_s=values["latency_us"] * 1e-6)
    if values["gbit"] is not None:
        constants = replace(constants, far_byte_s=8e-9 / values["gbit"])
    if values["gbytes"] is not None:
        constants = replace(constants, host_byte_s=1e-9 / values["gbytes"])
    if values["gflops"] is not None:
        flop_s = 1e-9 / values["gflops"]
        slower = constants.few_flop_s / constants.many_flop_s if constants.many_flop_s else 1.0
        constants = replace(constants, many_flop_s=flop_s, few_flop_s=slower * flop_s)
    return Assumptions(
        constants=constants,
        fitted=found is not None,
        local=-(-values["ranks"] // values["hosts"]),
        cores=values["cores"] or cores,
        level=values["level"],
        streams=values["streams"],
        prompt=values["prompt"],
        position=context // 2,
    )


@dataclass(frozen=True)
class Estimator:
    """ranks, memory_bytes: as there are, the latter on each host; wanted: how the model is to be loaded."""

    config: ModelConfig
    wanted: Wanted
    points: str
    sources: Mapping[str, Source] | None
    given: Assumptions
    ranks: int
    memory_bytes: int
    context: int

    def rows(self, *also: int) -> list[Estimated]:
        """Return the estimates for 1, 2, 4 ... shards and for `also`, as far as the model can be cut so."""
        most = min(self.ranks, self.config.num_heads)
        counts = {1 << i for i in range(most.bit_length())} | {most, *also}
        found, work = [], self._work()
        for shards in sorted(counts):
            with suppress(ModelError):  # quantised weights cannot be cut into any number
                found.append(self._row(shards, work))
        return found

    def _row(self, shards: int, work: ModelWork) -> Estimated:
        """Return the estimate for a number of shards; raise ModelError where the model cannot be cut so."""
        given = self.given
        if is_quantised(self.wanted.quantize, self.sources):
            for shard in Shard(0, shards).others():
                check_groups(self.config, shard, self.wanted.spread)
        busiest = rank_plan(self.config, self.wanted, Shard(shards - 1, shards), self.sources)
        size = busiest.total_bytes(self.context)
        local, replicas = min(shards, given.local), self.ranks // shards
        hosts = -(-shards // given.local)
        threads = max(1, given.cores // given.local)
        alone = Site(local, hosts, local, threads, given.cores, given.level)
        crowd = replace(alone, busy=min(given.local, replicas * shards))
        token_s = step_s(work.decode(shards, 1, given.position), alone, given.constants)
        all_s = step_s(work.decode(shards, given.streams, given.position), crowd, given.constants)
        prompt_s = step_s(work.prefill(shards, given.prompt), alone, given.constants)
        answers = self.config.has_head
        return Estimated(
            shards=shards,
            replicas=replicas,
            hosts=hosts,
            token_s=token_s if answers else None,
            prompt_tokens_per_s=given.prompt / prompt_s,
            tokens_per_s=replicas * given.streams / all_s if answers else None,
            rank_bytes=size,
            fits=crowd.busy * size <= self.memory_bytes,
        )

    def _work(self) -> ModelWork:
        """Return what steps of the model are."""
        wanted = self.wanted
        kept = wanted.cache_dtype
        return ModelWork(
            self.config, wanted.dtype, wanted.quantize, kept, wanted.spread, self.points, sources=self.sources
        )
