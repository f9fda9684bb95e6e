"""Say what the answers of the cluster's routes hold: their JSON schemas, for the OpenAPI document and the tests.

A field with a default is left out where there is nothing to say.
"""

from __future__ import annotations

from typing import Any, Literal

from ollampi.api.wires.ollama_answers import Answer, Time

Condition = Literal["healthy", "degraded", "unhealthy", "leaving"]
NodeStatus = Literal["online", "suspect", "offline", "left"]


class Status(Answer):
    """GET /api/cluster/status; uptime in seconds."""

    status: Condition
    nodes: int
    coordinator_nodes: int
    worker_nodes: int
    active_models: list[str]
    discovery_method: str
    uptime: int


class GpuInfo(Answer):
    """A GPU of a node; sizes in bytes."""

    name: str
    memory_total: int
    memory_available: int


class Resources(Answer):
    """What a node has; sizes in bytes."""

    cpu_cores: int
    memory_total: int
    memory_available: int
    gpu_count: int
    gpu_info: list[GpuInfo] = []


class NodeInfo(Answer):
    """A node, which is a rank; its API is reached through the coordinator's port, at `endpoint`."""

    id: str
    rank: int
    name: str
    role: Literal["coordinator", "mixed", "worker", "spare"]
    status: NodeStatus
    host: str
    api_port: int
    endpoint: str
    cluster_port: int
    uptime: int
    resources: Resources
    models: list[str]


class Nodes(Answer):
    """GET /api/cluster/nodes, in rank order."""

    nodes: list[NodeInfo]


class NodeHealth(Answer):
    """How a node does; only what is known is there."""

    id: str
    name: str
    status: NodeStatus
    since: float = 0
    seen_s: float = 0
    cpu_percent: float = 0
    memory_total: int = 0
    memory_available: int = 0
    process_bytes: int = 0
    step_ms: float = 0
    last_token_s: float = 0
    faults: list[str] = []


class NetworkLink(Answer):
    """The link from rank 0 to a rank, as it was measured at the start."""

    node: str
    host: str
    round_trip_ms: float
    mbit_per_s: float


class AllReduce(Answer):
    """The time of a sum over all ranks."""

    bytes: int
    microseconds: float


class NetworkInfo(Answer):
    """What was measured at the start, over MPI itself."""

    links: list[NetworkLink]
    all_reduce: list[AllReduce]
    warnings: list[str]


class Health(Answer):
    """GET /api/cluster/health; no network in a world of one rank."""

    status: Condition
    nodes: list[NodeHealth]
    network: NetworkInfo = NetworkInfo(links=[], all_reduce=[], warnings=[])
    leaving_s: float = 0


class Alive(Answer):
    """GET /api/v1/health."""

    status: Condition
    node_id: str
    timestamp: Time
    uptime: int


class ListedPlacement(Answer):
    """A loaded model; shards and strategy where it is distributed, replicas of several, state where it is not ready."""

    name: str
    distributed: bool
    shards: int = 0
    strategy: str = ""
    replicas: int = 1
    nodes: list[str]
    state: Literal["loading"] = "loading"


class Placements(Answer):
    """GET /api/cluster/model/list."""

    models: list[ListedPlacement]


class ShardInfo(Answer):
    """What one shard holds: query heads, KV heads and columns of the MLP as [first, last), bytes with the cache."""

    shard: int
    node: str
    name: str
    bytes: int
    heads: list[int] = []
    kv_heads: list[int] = []
    columns: list[int] = []


class ReplicaInfo(Answer):
    """A copy of a model."""

    nodes: list[str]
    requests: int
    errors: int
    running: int
    shards: list[ShardInfo]


class PlacementInfo(Answer):
    """GET /api/cluster/model/info."""

    name: str
    distributed: bool
    shards: int
    strategy: str
    why: str
    context: int
    state: Literal["ready", "loading"]
    nodes: list[str]
    replicas: list[ReplicaInfo]


class LoadedAnswer(Answer):
    """POST /api/cluster/model/load: the last line, or one of those before it, which count bytes."""

    status: Literal["loading", "loaded"]
    model: str
    distributed: bool = False
    shards: int = 0
    nodes: list[str] = []
    completed: int = 0
    total: int = 0


class UnloadedAnswer(Answer):
    """POST /api/cluster/model/unload."""

    status: Literal["unloaded"]
    model: str


class LeftAnswer(Answer):
    """POST /api/cluster/leave."""

    status: Literal["left"]
    message: str


class JoinedAnswer(Answer):
    """POST /api/cluster/join."""

    status: Literal["joined"]
    cluster_id: str
    node_id: str


class ProxyStatus(Answer):
    """GET /api/v1/proxy/status; an instance is a replica of a model."""

    status: Condition
    instance_count: int
    healthy_instances: int
    load_balancer: str


class Instance(Answer):
    """A replica; node_id is that of its first rank."""

    id: str
    node_id: str
    endpoint: str
    status: Literal["healthy", "unhealthy"]
    last_seen: Time
    request_count: int
    error_count: int


class Instances(Answer):
    """GET /api/v1/proxy/instances."""

    instances: list[Instance]


class Balancing(Answer):
    """How often a replica was chosen, and how often none could take a request."""

    decisions: int
    errors: int


class ProxyMetrics(Answer):
    """GET /api/v1/proxy/metrics since the job began; average_latency in nanoseconds."""

    total_requests: int
    successful_requests: int
    failed_requests: int
    average_latency: int
    requests_per_second: float
    load_balancing: Balancing
    instance_metrics: dict[str, Any]
