"""Write the health of the ranks as samples for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ollampi.mpiruntime.request import Sample

STATUSES = ("online", "suspect", "offline", "left")
_GAUGES = {  # of a node's values: what a scrape calls them, and what they are multiplied by
    "seen_s": ("ollampi_node_heartbeat_age_seconds", 1.0),
    "cpu_percent": ("ollampi_node_cpu_percent", 1.0),
    "memory_total": ("ollampi_node_memory_bytes", 1.0),
    "memory_available": ("ollampi_node_memory_available_bytes", 1.0),
    "process_bytes": ("ollampi_node_process_bytes", 1.0),
    "step_ms": ("ollampi_node_step_seconds", 1e-3),
    "last_token_s": ("ollampi_node_step_age_seconds", 1.0),
}


def node_samples(
    nodes: Sequence[Mapping[str, Any]], changes: Mapping[int, int], tests: Mapping[str, int]
) -> list[Sample]:
    """Return the samples of nodes (the values of NodeHealth), of changes by rank and of self-tests by outcome."""
    found: list[Sample] = [("ollampi_self_tests_total", {"outcome": name}, n) for name, n in tests.items()]
    for node in nodes:
        found += _of_node(node)
        where = {"rank": str(node["rank"])}
        found.append(("ollampi_node_changes_total", where, changes.get(node["rank"], 0)))
    return found


def _of_node(node: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield the samples of one rank; those that it has not told are left out."""
    where = {"rank": str(node["rank"])}
    for status in STATUSES:
        yield "ollampi_node_status", {**where, "status": status}, int(node["status"] == status)
    for name, (metric, factor) in _GAUGES.items():
        if node[name] is not None:
            yield metric, where, node[name] * factor
    for gpu in node["gpus"]:
        of_gpu = {**where, "gpu": gpu["name"]}
        yield "ollampi_node_gpu_memory_bytes", of_gpu, gpu["memory_total"]
        yield "ollampi_node_gpu_memory_available_bytes", of_gpu, gpu["memory_available"]
    yield "ollampi_node_faults", where, len(node["faults"])
