"""Show a job to those who manage it: its ranks as nodes, and where its models lie. Rank 0, any thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ollampi.kernels.groups import GROUP
from ollampi.mpiruntime.cluster import Cluster, Gpu, Network, Node, Placement, Replica, Traffic
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.inbox import Client
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.placed import Placed
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.wire import Message
from ollampi.mpiruntime.world import RankFacts, free_memory

_REPLACED = ("status", "memory_total", "memory_available")  # of a node, where somebody watches its health


class ClusterView:
    """What is known of the ranks and the models; `answer` is safe in any thread and waits for no step and no load.

    names: of the nodes; api_host, api_port: where rank 0 serves HTTP; network: what was measured at the start. health:
    returns what is known of each rank now, by the names of NodeHealth's fields; leaving_s: returns the seconds after
    which the job ends at the latest, None where it does not end; refused: returns how many requests were refused.
    """

    def __init__(
        self,
        facts: Sequence[RankFacts],
        models: Models,
        names: Sequence[str],
        api_port: int,
        environ: Mapping[str, str],
        network: Network | None = None,
        api_host: str = "",
    ) -> None:
        self._facts = facts
        self._models = models
        self._names = names
        self._api_port, self._api_host = api_port, api_host
        self._discovery = "slurm" if environ.get("SLURM_JOB_ID") else "mpi"
        self._network = network
        self._began = time.monotonic()
        self.health: Callable[[], dict[int, dict[str, Any]]] = dict
        self.leaving_s: Callable[[], float | None] = lambda: None
        self.refused: Callable[[], int] = lambda: 0

    def answer(self, client: Client, message: Message) -> None:
        """Post what the job is like to who asks."""
        client.post({"id": message.get("id", 0), "kind": "cluster", "cluster": asdict(self.cluster())})

    def cluster(self) -> Cluster:
        """Return what the job is like now."""
        models = [placement_of(placed) for placed in self._models.placed()]
        loading = self._models.loading
        if loading is not None and all(model.name != loading.name for model in models):
            models.append(Placement(loading.name, shards=0, replicas=[], state="loading"))
        return Cluster(
            world=len(self._facts),
            uptime_s=self._uptime_s,
            discovery_method=self._discovery,
            api_port=self._api_port,
            nodes=self._nodes(models),
            models=models,
            traffic=self._traffic(),
            network=self._network,
            leaving_s=self.leaving_s(),
            load_balancing=self._models.cluster.load_balancing,
            api_host=self._api_host,
        )

    @property
    def _uptime_s(self) -> float:
        return time.monotonic() - self._began

    def _nodes(self, models: list[Placement]) -> list[Node]:
        """Return all ranks as nodes."""
        health, free = self.health(), free_memory()
        here = self._facts[0].host
        nodes = [self._node(fact, models, free if fact.host == here else fact.memory_bytes) for fact in self._facts]
        return [_with_health(node, health[node.rank]) if node.rank in health else node for node in nodes]

    def _role(self, rank: int, models: list[Placement]) -> str:
        """Return what a rank is for; one that holds nothing, beside others that do, is a spare."""
        if rank == 0:
            return "mixed" if 0 in self._models.usable else "coordinator"
        held = {holder for model in models for holder in model.ranks}
        return "worker" if rank in held or not held else "spare"

    def _node(self, fact: RankFacts, models: list[Placement], available: int) -> Node:
        gpus = [Gpu(fact.gpu, fact.gpu_bytes, fact.gpu_bytes)] if fact.gpu else []
        return Node(
            rank=fact.rank,
            id=node_id(fact.rank),
            name=self._names[fact.rank],
            role=self._role(fact.rank, models),
            host=fact.host,
            status="online",
            uptime_s=self._uptime_s,
            cpu_cores=len(fact.cores),
            memory_total=fact.memory_total,
            memory_available=available,
            gpus=gpus,
            models=_shards_on(fact.rank, models),
        )

    def _traffic(self) -> Traffic:
        """Return what all models had to do since the job began; they come and go, their counts stay."""
        total = Traffic(refused=self.refused())
        for counts in list(self._models.counts.values()):
            outcomes = counts.outcomes
            total = Traffic(
                successful=total.successful + outcomes["stop"] + outcomes["length"],
                failed=total.failed + outcomes["error"],
                cancelled=total.cancelled + outcomes["cancel"],
                refused=total.refused,
                seconds=total.seconds + counts.first_token.sum + counts.inter_token.sum,
            )
        return total


def node_id(rank: int) -> str:
    """Return the id of a rank's node."""
    return f"node-{rank}"


def node_names(hosts: Sequence[str], given: Sequence[str | None] = ()) -> list[str]:
    """Return the name of each rank's node: the one it was given, or its host's, with its rank where names repeat."""
    plain = [host if list(hosts).count(host) == 1 else f"{host}-{rank}" for rank, host in enumerate(hosts)]
    names = [name or plain[rank] for rank, name in enumerate(given)] if given else plain
    return [name if names.count(name) == 1 else f"{name}-{rank}" for rank, name in enumerate(names)]


def placement_of(placed: Placed) -> Placement:
    """Return where a model lies, and why there."""
    replicas = [_replica_of(replica) for replica in placed.replicas]
    layout, shards = placed.layout, max(len(replica.ranks) for replica in replicas)
    return Placement(placed.ref.name, shards, replicas, layout.strategy, layout.why, placed.replicas[0].context)


def _replica_of(hosted: HostedModel) -> Replica:
    """Return what a replica holds on each of its ranks, and how its requests ended."""
    reports, outcomes = hosted.reports, hosted.outcomes
    return Replica(
        ranks=[report.rank for report in reports],
        bytes=[report.held_bytes for report in reports],
        heads=[list(report.heads) for report in reports],
        kv_heads=[list(report.kv_heads) for report in reports],
        columns=_columns(hosted.config, reports),
        requests=outcomes.total(),
        errors=outcomes["error"],
        running=len(hosted.scheduler.running) + len(hosted.scheduler.waiting),
    )


def _columns(config: ModelConfig, reports: list[LoadReport]) -> list[list[int]]:
    """Return the columns of the MLP that each shard holds; nothing for a mixture, whose experts may be dealt out."""
    if config.experts is not None:
        return []
    parts = [Shard(place, len(reports)).of(config.mlp_width, unit=GROUP) for place in range(len(reports))]
    return [[part.start, part.stop] for part in parts]


def _shards_on(rank: int, models: list[Placement]) -> list[str]:
    """Return the shards that a rank holds, counted from 1."""
    return [
        f"{model.name}:shard-{replica.ranks.index(rank) + 1}"
        for model in models
        for replica in model.replicas
        if rank in replica.ranks
    ]


def _with_health(node: Node, known: dict[str, Any]) -> Node:
    """Return the node as whoever watches its health sees it."""
    better = {name: known[name] for name in _REPLACED if known.get(name) is not None}
    return replace(node, health=known, **better)
