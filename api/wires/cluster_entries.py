"""Write what the engine tells of a job in the shapes of the documents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ollampi.api.durations import local_text
from ollampi.mpiruntime.cluster import Cluster, Network, Node, Placement, Replica

MAX_ROUND_TRIP_S = 0.002
MIN_BITS_PER_S = 1e9
_NO_CLUSTER_PORT = 0  # ranks talk through MPI, which listens where it likes
_HEALTH = (
    "since",
    "seen_s",
    "cpu_percent",
    "memory_total",
    "memory_available",
    "process_bytes",
    "step_ms",
    "last_token_s",
    "faults",
)

Json = dict[str, Any]


def condition(cluster: Cluster) -> str:
    """Return how the job does in one word; a node that computes wrong degrades it, also once others have taken over."""
    if cluster.leaving_s is not None:
        return "leaving"
    states = {node.status for node in cluster.nodes}
    ill = "suspect" in states or any(node.health.get("faults") for node in cluster.nodes)
    return "unhealthy" if "offline" in states else "degraded" if ill else "healthy"


def status_answer(cluster: Cluster) -> Json:
    """Return the answer of /api/cluster/status."""
    coordinators = sum(node.coordinates for node in cluster.nodes)
    return {
        "status": condition(cluster),
        "nodes": len(cluster.nodes),
        "coordinator_nodes": coordinators,
        "worker_nodes": len(cluster.nodes) - coordinators,
        "active_models": [model.name for model in cluster.models if model.state == "ready"],
        "discovery_method": cluster.discovery_method,
        "uptime": int(cluster.uptime_s),
    }


def node_entry(node: Node, cluster: Cluster) -> Json:
    """Return a node's entry in /api/cluster/nodes."""
    gpus = [{"name": g.name, "memory_total": g.memory_total, "memory_available": g.memory_available} for g in node.gpus]
    resources = {
        "cpu_cores": node.cpu_cores,
        "memory_total": node.memory_total,
        "memory_available": node.memory_available,
        "gpu_count": len(gpus),
    }
    return {
        "id": node.id,
        "rank": node.rank,
        "name": node.name,
        "role": node.role,
        "status": node.status,
        "host": node.host,
        "api_port": cluster.api_port,
        "endpoint": cluster.endpoint,
        "cluster_port": _NO_CLUSTER_PORT,
        "uptime": int(node.uptime_s),
        "resources": resources | ({"gpu_info": gpus} if gpus else {}),
        "models": node.models,
    }


def health_answer(cluster: Cluster) -> Json:
    """Return the answer of /api/cluster/health."""
    nodes = [
        {"id": node.id, "name": node.name, "status": node.status}
        | {name: node.health[name] for name in _HEALTH if node.health.get(name) is not None}
        for node in cluster.nodes
    ]
    network = {} if cluster.network is None else {"network": network_entry(cluster.network, cluster)}
    leaving = {} if cluster.leaving_s is None else {"leaving_s": cluster.leaving_s}
    return {"status": condition(cluster), "nodes": nodes, **network, **leaving}


def network_entry(network: Network, cluster: Cluster) -> Json:
    """Return what was measured at the start, with what the document of the cluster mode asks for and is not met."""
    links, warnings = [], []
    for link in network.links:
        node = cluster.nodes[link.rank]
        links.append(
            {
                "node": node.id,
                "host": link.host,
                "round_trip_ms": round(link.round_trip_s * 1e3, 4),
                "mbit_per_s": round(link.bytes_per_s * 8e-6, 1),
            }
        )
        if link.round_trip_s > MAX_ROUND_TRIP_S:
            warnings.append(
                f"the round trip to {node.id} on {link.host} takes {link.round_trip_s * 1e3:.1f} ms, and more than"
                " 2 ms slows every layer down: use hosts that are closer, or fewer shards"
            )
        if link.bytes_per_s * 8 < MIN_BITS_PER_S:
            warnings.append(
                f"the link to {node.id} on {link.host} carries {link.bytes_per_s * 8e-6:.0f} Mbit/s, less than the"
                " 1 Gbit/s that is needed: choose a faster network with exchange.interface, or compress with"
                " exchange.communication_strategy=compressed"
            )
    sums = [{"bytes": size, "microseconds": round(seconds * 1e6, 1)} for size, seconds in network.all_reduce]
    return {"links": links, "all_reduce": sums, "warnings": warnings}


def alive_answer(cluster: Cluster) -> Json:
    """Return the answer of /api/v1/health."""
    return {
        "status": condition(cluster),
        "node_id": cluster.nodes[0].id,
        "timestamp": local_text(time.time()),
        "uptime": int(cluster.uptime_s),
    }


def list_entry(model: Placement, cluster: Cluster) -> Json:
    """Return a model's entry in /api/cluster/model/list."""
    distributed = model.shards > 1
    cut = {"shards": model.shards, "strategy": model.strategy} if distributed else {}
    copies = {"replicas": len(model.replicas)} if len(model.replicas) > 1 else {}
    state = {} if model.state == "ready" else {"state": model.state}
    nodes = _ids(model.ranks, cluster)
    return {"name": model.name, "distributed": distributed, **cut, **copies, "nodes": nodes, **state}


def info_answer(model: Placement, cluster: Cluster) -> Json:
    """Return the answer of /api/cluster/model/info."""
    return {
        "name": model.name,
        "distributed": model.shards > 1,
        "shards": model.shards,
        "strategy": model.strategy,
        "why": model.why,
        "context": model.context,
        "state": model.state,
        "nodes": _ids(model.ranks, cluster),
        "replicas": [_replica(replica, cluster) for replica in model.replicas],
    }


def loaded_answer(name: str, model: Placement, cluster: Cluster) -> Json:
    """Return the answer of /api/cluster/model/load."""
    nodes = _ids(model.ranks, cluster)
    return {"status": "loaded", "model": name, "distributed": model.shards > 1, "shards": model.shards, "nodes": nodes}


def proxy_status(cluster: Cluster) -> Json:
    """Return the answer of /api/v1/proxy/status."""
    states = [_is_healthy(replica, cluster) for _, replica in _instances(cluster)]
    return {
        "status": condition(cluster),
        "instance_count": len(states),
        "healthy_instances": sum(states),
        "load_balancer": cluster.load_balancing,
    }


def proxy_instances(cluster: Cluster) -> Json:
    """Return the answer of /api/v1/proxy/instances."""
    return {"instances": [_instance(id_, replica, cluster) for id_, replica in _instances(cluster)]}


def proxy_metrics(cluster: Cluster) -> Json:
    """Return the answer of /api/v1/proxy/metrics."""
    traffic = cluster.traffic
    begun = traffic.successful + traffic.failed + traffic.cancelled
    each = {
        id_: {"requests": replica.requests, "errors": replica.errors, "running": replica.running}
        for id_, replica in _instances(cluster)
    }
    return {
        "total_requests": begun + traffic.refused,
        "successful_requests": traffic.successful,
        "failed_requests": traffic.failed + traffic.refused,
        "average_latency": int(traffic.seconds * 1e9 / begun) if begun else 0,
        "requests_per_second": round((begun + traffic.refused) / max(cluster.uptime_s, 1.0), 4),
        "load_balancing": {"decisions": begun, "errors": traffic.refused},
        "instance_metrics": each,
    }


def _instances(cluster: Cluster) -> Iterator[tuple[str, Replica]]:
    """Yield the replicas of all models with their ids."""
    for model in cluster.models:
        yield from ((f"{model.name}#{number}", replica) for number, replica in enumerate(model.replicas))


def _instance(id_: str, replica: Replica, cluster: Cluster) -> Json:
    first = cluster.nodes[replica.ranks[0]]
    unseen_s = max(float(cluster.nodes[rank].health.get("seen_s") or 0.0) for rank in replica.ranks)
    return {
        "id": id_,
        "node_id": first.id,
        "endpoint": cluster.endpoint,
        "status": "healthy" if _is_healthy(replica, cluster) else "unhealthy",
        "last_seen": local_text(time.time() - unseen_s),
        "request_count": replica.requests,
        "error_count": replica.errors,
    }


def _is_healthy(replica: Replica, cluster: Cluster) -> bool:
    """Return whether all ranks of a replica are online."""
    return all(cluster.nodes[rank].status == "online" for rank in replica.ranks)


def _replica(replica: Replica, cluster: Cluster) -> Json:
    """Return a replica's entry in /api/cluster/model/info."""
    shards = []
    for place, rank in enumerate(replica.ranks):
        node = cluster.nodes[rank]
        held = {"heads": replica.heads, "kv_heads": replica.kv_heads, "columns": replica.columns}
        size = replica.bytes[place] if place < len(replica.bytes) else 0
        entry = {"shard": place + 1, "node": node.id, "name": node.name, "bytes": size}
        shards.append(entry | {name: list(parts[place]) for name, parts in held.items() if place < len(parts)})
    return {
        "nodes": _ids(replica.ranks, cluster),
        "requests": replica.requests,
        "errors": replica.errors,
        "running": replica.running,
        "shards": shards,
    }


def _ids(ranks: list[int], cluster: Cluster) -> list[str]:
    return [cluster.nodes[rank].id for rank in ranks]
