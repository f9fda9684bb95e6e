"""Describe a job to those who manage it, as plain values for the wire: its nodes, and which models lie on which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")
STRATEGIES = ("auto", "memory-optimized", "speed-optimized", "balanced")


@dataclass(frozen=True)
class Gpu:
    """A GPU of a node; sizes in bytes."""

    name: str
    memory_total: int
    memory_available: int


@dataclass(frozen=True)
class Node:
    """A rank: who it is, what it has, and the shards of models that it holds, as NAME:shard-1.

    role: coordinator, mixed, worker or spare; status: online, suspect, offline or left; sizes in bytes. health: what is
    known of how it does, by the names of NodeHealth's fields, empty where nobody watches.
    """

    rank: int
    id: str
    name: str
    role: str
    host: str
    status: str
    uptime_s: float
    cpu_cores: int
    memory_total: int
    memory_available: int
    gpus: list[Gpu] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    health: dict[str, Any] = field(default_factory=dict)

    @property
    def coordinates(self) -> bool:
        """Return whether it is the node that plans and answers HTTP."""
        return self.role in ("coordinator", "mixed")


@dataclass(frozen=True)
class Replica:
    """A copy of a model: the ranks that hold its shards, in order, and of each shard what it holds.

    bytes: of weights and cache; heads, kv_heads, columns: query heads, KV heads and columns of the MLP as
    [first, last). requests, errors: that the model had on these ranks since the job began, however often it came there;
    running: that it has now.
    """

    ranks: list[int]
    bytes: list[int] = field(default_factory=list)
    heads: list[list[int]] = field(default_factory=list)
    kv_heads: list[list[int]] = field(default_factory=list)
    columns: list[list[int]] = field(default_factory=list)
    requests: int = 0
    errors: int = 0
    running: int = 0


@dataclass(frozen=True)
class Placement:
    """Where a model lies, by which strategy and why; state: ready, or loading, when it has no replicas yet."""

    name: str
    shards: int
    replicas: list[Replica]
    strategy: str = "auto"
    why: str = ""
    context: int = 0
    state: str = "ready"

    @property
    def ranks(self) -> list[int]:
        """Return the ranks that hold a shard, each once, in order."""
        return sorted({rank for replica in self.replicas for rank in replica.ranks})


@dataclass(frozen=True)
class Pace:
    """What the link from rank 0 to a rank can do: the round trip of 8 bytes, and the rate of large messages."""

    rank: int
    host: str
    round_trip_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Network:
    """What was measured when the job began: links to one rank of each host, and sums over all ranks."""

    links: list[Pace]
    all_reduce: list[tuple[int, float]]  # bytes, seconds


@dataclass(frozen=True)
class Traffic:
    """The requests of all models since the job began; seconds: from their arrival to their last token, in all.

    cancelled: their client left; refused: they never began.
    """

    successful: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """The job; leaving_s: the seconds after which it ends at the latest, None where it does not end.

    load_balancing: how the replica is chosen that takes a request; api_host: the address at which rank 0 listens, empty
    where that is not known.
    """

    world: int
    uptime_s: float
    discovery_method: str
    api_port: int
    nodes: list[Node]
    models: list[Placement]
    traffic: Traffic = field(default_factory=Traffic)
    network: Network | None = None
    leaving_s: float | None = None
    load_balancing: str = "least_connections"
    api_host: str = ""

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Cluster:
        """Return what `dataclasses.asdict` made of one; names that are not known here are left out."""
        network = values.get("network")
        parts = {
            "nodes": [node_from(node) for node in values["nodes"]],
            "models": [placement_from(model) for model in values["models"]],
            "traffic": _known(Traffic, values.get("traffic") or {}),
            "network": None if network is None else _network(network),
        }
        return _known(cls, {**values, **parts})

    @property
    def endpoint(self) -> str:
        """Return the URL of the API: at rank 0's host where it listens on all interfaces, else where it listens.

        A loopback address says that no other host can reach it.
        """
        host = self.nodes[0].host if self.api_host in ("", "0.0.0.0", "::") else self.api_host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.api_port}"

    def model(self, name: str) -> Placement | None:
        """Return where a model lies, by its full name, or None where it is not loaded."""
        return next((model for model in self.models if model.name == name), None)


@dataclass(frozen=True)
class Wish:
    """How a model shall be placed; None leaves it to the strategy. ranks: those of each replica.

    streams: the answers that are expected to run at one time, by which a strategy chooses replicas too where these are
    not given; None: one, and one replica.
    """

    context: int | None = None
    keep_alive_s: float | None = None
    strategy: str = "auto"
    shards: int | None = None
    replicas: int | None = None
    ranks: list[list[int]] | None = None
    streams: int | None = None

    @classmethod
    def from_wire(cls, message: Mapping[str, Any]) -> Wish:
        """Return what a message with the fields of a wish asks for."""
        return _known(cls, message)


def placement_from(values: Mapping[str, Any]) -> Placement:
    """Return a placement from plain values."""
    return _known(Placement, {**values, "replicas": [_known(Replica, each) for each in values["replicas"]]})


def node_from(values: Mapping[str, Any]) -> Node:
    """Return a node from plain values."""
    return _known(Node, {**values, "gpus": [_known(Gpu, each) for each in values.get("gpus") or []]})


def _network(values: Mapping[str, Any]) -> Network:
    """Return the figures from plain values."""
    sums = [(int(size), float(seconds)) for size, seconds in values["all_reduce"]]
    return Network([_known(Pace, each) for each in values["links"]], sums)


def _known(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return an object of a dataclass from those values that it knows."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in names})
