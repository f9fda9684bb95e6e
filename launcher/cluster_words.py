"""Put a server's answers about the cluster into the words and tables that the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollampi.launcher.words import human_duration, human_size, human_time, one_line, scaled, table

Json = Mapping[str, Any]
_WELL = ("online", "left")  # of one that was taken out for what is wrong with it, that is told


def status_text(status: Json) -> str:
    """Return what `cluster status` prints."""
    coordinators, workers = status["coordinator_nodes"], status["worker_nodes"]
    parts = f"{coordinators} coordinator{_s(coordinators)}, {workers} worker{_s(workers)}"
    rows = [
        ("Status:", status["status"]),
        ("Nodes:", f"{status['nodes']} ({parts})"),
        ("Discovery:", status["discovery_method"]),
        ("Uptime:", human_duration(int(status["uptime"]) * 10**9)),
        ("Models:", ", ".join(status["active_models"]) or "none"),
    ]
    return table([(name, one_line(str(value))) for name, value in rows])


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def nodes_text(nodes: Sequence[Json]) -> str:
    """Return what `cluster nodes` prints."""
    rows = [("ID", "NAME", "ROLE", "STATUS", "HOST", "API", "CORES", "MEMORY", "GPUS", "MODELS")]
    for node in nodes:
        has = node["resources"]
        memory = f"{human_size(has['memory_available'])} of {human_size(has['memory_total'])}"
        rows.append(
            (
                one_line(node["id"]),
                one_line(node["name"]),
                one_line(node["role"]),
                one_line(node["status"]),
                one_line(node["host"]),
                str(node["api_port"]),
                str(has["cpu_cores"]),
                memory,
                _gpus(has),
                one_line(", ".join(node["models"])),
            )
        )
    return table(rows)


def _gpus(resources: Json) -> str:
    """Return the GPUs of a node with their memory."""
    gpus = resources.get("gpu_info") or []
    return ", ".join(f"{one_line(gpu['name'])} ({human_size(gpu['memory_available'])} free)" for gpu in gpus) or "none"


def health_text(health: Json) -> str:
    """Return what `cluster health` prints; what is not known of a node is a dash."""
    rows = [("ID", "NAME", "STATUS", "SEEN", "CPU", "MEMORY", "STEP", "FAULTS")]
    for node in health["nodes"]:
        rows.append(
            (
                one_line(node["id"]),
                one_line(node["name"]),
                one_line(node["status"]),
                _known(node, "seen_s", "{:.1f} s ago"),
                _known(node, "cpu_percent", "{:.0f} %"),
                human_size(node["memory_available"]) + " free" if "memory_available" in node else "-",
                _known(node, "step_ms", "{:.1f} ms"),
                one_line("; ".join(node.get("faults") or [])) or "none",
            )
        )
    return f"The cluster is {one_line(health['status'])}.\n{table(rows)}"


def _known(node: Json, name: str, form: str) -> str:
    return form.format(node[name]) if name in node else "-"


def diagnosis_text(health: Json) -> str:
    """Return what `cluster diagnose` prints: nodes that are not well, and the network as it was at the start."""
    ill = [f"{node['id']} is {node['status']}" for node in health["nodes"] if node["status"] not in _WELL]
    ill += [f"{node['id']}: {fault}" for node in health["nodes"] for fault in node.get("faults") or []]
    network = health.get("network")
    parts = [f"{len(health['nodes'])} nodes, {one_line(health['status'])}\n"]
    if network is None:
        parts.append("There is no network to measure: the job has one rank, or its ranks have no links.\n")
    else:
        parts.append("\nThe network over MPI, as measured when the job began:\n" + _links(network))
    warnings = [*ill, *(network or {}).get("warnings", [])]
    parts += [f"Warning: {one_line(warning)}\n" for warning in warnings] or ["No problem found.\n"]
    return "".join(parts)


def _links(network: Json) -> str:
    rows = [("NODE", "HOST", "ROUND TRIP", "BANDWIDTH")]
    for link in network["links"]:
        rate = f"{link['mbit_per_s']:.0f} Mbit/s"
        rows.append((one_line(link["node"]), one_line(link["host"]), f"{link['round_trip_ms']:.3f} ms", rate))
    sums = [f"all-reduce of {each['bytes']} bytes: {each['microseconds']:.0f} us\n" for each in network["all_reduce"]]
    return table(rows) + "".join(sums)


def models_text(models: Sequence[Json]) -> str:
    """Return what `cluster model list` prints."""
    rows = [("NAME", "DISTRIBUTED", "SHARDS", "REPLICAS", "STRATEGY", "NODES", "STATE")]
    for model in models:
        shards, copies = str(model.get("shards", 1)), str(model.get("replicas", 1))
        nodes, state = one_line(", ".join(model["nodes"])), one_line(model.get("state", "ready"))
        if state == "loading":
            shards = copies = "-"
        is_cut, strategy = "yes" if model["distributed"] else "no", one_line(model.get("strategy", "-"))
        rows.append((one_line(model["name"]), is_cut, shards, copies, strategy, nodes, state))
    return table(rows)


def info_text(info: Json) -> str:
    """Return what `cluster model info` prints."""
    rows = [
        ("Model:", info["name"]),
        ("State:", info["state"]),
        ("Strategy:", f"{info['strategy']}: {info['why']}"),
        ("Context:", str(info["context"])),
        ("Replicas:", str(len(info["replicas"]))),
    ]
    return table([(name, one_line(value)) for name, value in rows]) + "".join(shard_lines(info))


def partition_line(info: Json) -> str:
    """Return the line of a load that says into how many shards a model was cut, and how large they are."""
    sizes = [shard["bytes"] for replica in info["replicas"] for shard in replica["shards"]]
    least, most = short_size(min(sizes, default=0)), short_size(max(sizes, default=0))
    each = least if least == most else f"{least} to {most}"
    copies = len(info["replicas"])
    times = f"{copies} replicas of " if copies > 1 else ""
    return (
        f"Model partitioned into {times}{info['shards']} shard{_s(info['shards'])}, {each} per shard with its cache\n"
    )


def shard_lines(info: Json) -> list[str]:
    """Return a line for each shard: its node, and what it holds."""
    copies = len(info["replicas"])
    return [
        f"{f'Replica {copy}, shard' if copies > 1 else 'Shard'} {shard['shard']}: {one_line(shard['name'])}"
        f" ({', '.join(_held(shard))})\n"
        for copy, replica in enumerate(info["replicas"], 1)
        for shard in replica["shards"]
    ]


def _held(shard: Json) -> list[str]:
    """Return what a shard holds, in words."""
    kinds = (("head", "heads"), ("KV head", "kv_heads"), ("column", "columns"))
    return [*(_range(word, shard[name]) for word, name in kinds if name in shard), short_size(shard["bytes"])]


def _range(word: str, part: Sequence[int]) -> str:
    first, last = part[0], part[1] - 1
    return f"{word} {first}" if first == last else f"{word}s {first}-{last}"


def short_size(size_bytes: int) -> str:
    """Return a size as the document of the cluster mode writes it: `37.5GB`."""
    value, unit = scaled(size_bytes)
    return f"{value:.1f}".removesuffix(".0") + unit


def proxy_status_text(status: Json) -> str:
    """Return what `proxy status` prints."""
    well = f"{status['healthy_instances']} of {status['instance_count']} healthy"
    balancer = one_line(status["load_balancer"])
    return table([("Status:", one_line(status["status"])), ("Instances:", well), ("Load balancer:", balancer)])


def instances_text(instances: Sequence[Json]) -> str:
    """Return what `proxy instances` prints."""
    rows = [("ID", "NODE", "ENDPOINT", "STATUS", "LAST SEEN", "REQUESTS", "ERRORS")]
    for each in instances:
        names = [one_line(str(each[name])) for name in ("id", "node_id", "endpoint", "status")]
        seen = human_time(each["last_seen"])
        rows.append((*names, seen, str(each["request_count"]), str(each["error_count"])))  # type: ignore[arg-type]
    return table(rows)


def metrics_text(metrics: Json) -> str:
    """Return what `proxy metrics` prints."""
    balancing = metrics["load_balancing"]
    rows = [
        ("Requests:", str(metrics["total_requests"])),
        ("Successful:", str(metrics["successful_requests"])),
        ("Failed:", str(metrics["failed_requests"])),
        ("Average latency:", human_duration(metrics["average_latency"])),
        ("Requests per second:", f"{metrics['requests_per_second']:.2f}"),
        ("Decisions:", f"{balancing['decisions']}, and {balancing['errors']} refused"),
    ]
    each = metrics["instance_metrics"].items()
    rows += [(one_line(f"{id_}:"), f"{one['requests']} requests, {one['errors']} errors") for id_, one in each]
    return table(rows)
