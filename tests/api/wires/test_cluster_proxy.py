"""What the proxy's routes tell of the replicas, on an engine that answers by script."""

from __future__ import annotations

import pytest
from support.clusters import a_cluster, a_node

from ollampi.api.engine_client import EngineError


def test_what_the_proxy_tells(client, engine) -> None:
    assert client.get("/api/v1/proxy/metrics").json == {
        "total_requests": 7,
        "successful_requests": 3,
        "failed_requests": 3,
        "average_latency": 2_000_000_000,  # 10 s over the five that began
        "requests_per_second": round(7 / 61.5, 4),
        "load_balancing": {"decisions": 5, "errors": 2},
        "instance_metrics": {"demo:latest#0": {"requests": 5, "errors": 1, "running": 0}},
    }
    engine.job = a_cluster(nodes=[a_node(0), a_node(1, status="suspect")])
    assert client.get("/api/v1/proxy/status").json["healthy_instances"] == 0
    (instance,) = client.get("/api/v1/proxy/instances").json["instances"]
    assert (instance["status"], instance["endpoint"]) == ("unhealthy", "http://host0:11434")


@pytest.mark.parametrize("name", ["status", "instances", "metrics"])
def test_without_an_engine_the_proxy_has_a_message(client, engine, name: str) -> None:
    engine.job = EngineError("unavailable", "the engine is away")
    response = client.get(f"/api/v1/proxy/{name}")
    assert (response.status_code, response.json) == (
        503,
        {"error": "No nodes discovered", "message": "the engine is away"},
    )
    assert "Retry-After" in response.headers
