"""The routes of the cluster on an engine that answers by script; tests/launcher/test_cluster.py has a real one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from support.clusters import a_cluster, a_node, a_placement

from ollampi.api.engine_client import EngineError, Loading, Placed
from ollampi.mpiruntime.cluster import Cluster, Replica, Wish

AT = "/api/cluster"
READ = ["status", "nodes", "health", "model/list", "model/info?model=demo"]


def test_every_route_is_there_under_v1_too(client) -> None:
    for path in READ:
        plain, v1 = client.get(f"{AT}/{path}"), client.get(f"/api/v1/cluster/{path}")
        assert (plain.status_code, plain.json) == (200, v1.json), path


def test_the_shapes_of_the_document(client) -> None:
    assert client.get(f"{AT}/status").json == {
        "status": "healthy",
        "nodes": 2,
        "coordinator_nodes": 1,
        "worker_nodes": 1,
        "active_models": ["demo:latest"],
        "discovery_method": "mpi",
        "uptime": 61,
    }
    assert client.get(f"{AT}/nodes").json["nodes"][1] == {
        "id": "node-1",
        "rank": 1,
        "name": "host1",
        "role": "worker",
        "status": "online",
        "host": "host1",
        "api_port": 11434,
        "endpoint": "http://host0:11434",
        "cluster_port": 0,
        "uptime": 61,
        "resources": {
            "cpu_cores": 8,
            "memory_total": 64_000_000_000,
            "memory_available": 48_000_000_000,
            "gpu_count": 1,
            "gpu_info": [{"name": "GPU of a test", "memory_total": 40, "memory_available": 30}],
        },
        "models": ["demo:latest:shard-2"],
    }
    nodes = ["node-0", "node-1"]
    entry = {"name": "demo:latest", "distributed": True, "shards": 2, "strategy": "auto", "nodes": nodes}
    assert client.get(f"{AT}/model/list").json == {"models": [entry]}
    body = {"model": "demo", "distributed": True, "strategy": "auto", "shards": 2, "node_ids": ["node-0", "host1"]}
    loaded = {"status": "loaded", "model": "demo", "distributed": True, "shards": 2, "nodes": nodes}
    assert client.post(f"{AT}/model/load", json=body).json == loaded
    unloaded = client.post(f"{AT}/model/unload", json={"model": "demo"}).json
    assert unloaded == {"status": "unloaded", "model": "demo"}
    left = client.post(f"{AT}/leave", json={"graceful": True, "timeout": 60}).json
    assert left == {"status": "left", "message": "Node successfully left the cluster"}


def test_whole_models_on_nodes_are_not_distributed(client, engine) -> None:
    engine.job = a_cluster(models=[a_placement(shards=1, replicas=[Replica([0], [9]), Replica([1], [9])])])
    (entry,) = client.get(f"{AT}/model/list").json["models"]
    assert entry == {"name": "demo:latest", "distributed": False, "replicas": 2, "nodes": ["node-0", "node-1"]}
    assert [r["nodes"] for r in client.get(f"{AT}/model/info?model=demo").json["replicas"]] == [["node-0"], ["node-1"]]
    assert client.get("/api/v1/proxy/status").json["instance_count"] == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "healthy"),
        ({"nodes": [a_node(0), a_node(1, status="suspect")]}, "degraded"),
        ({"nodes": [a_node(0, status="offline"), a_node(1, status="suspect")]}, "unhealthy"),
        ({"leaving_s": 3.5}, "leaving"),
    ],
)
def test_how_the_cluster_does(client, engine, fields: dict[str, Any], said: str) -> None:
    engine.job = a_cluster(**fields)
    assert client.get(f"{AT}/status").json["status"] == client.get(f"{AT}/health").json["status"] == said
    assert client.get("/api/v1/health").json["status"] == said


def test_health_says_what_is_known_and_what_is_too_slow(client, engine) -> None:
    known = {"seen_s": 0.5, "step_ms": None, "faults": ["no step for 9 s"], "unheard_of": 1}
    engine.job = a_cluster(nodes=[a_node(0), a_node(1, health=known)])
    answer = client.get(f"{AT}/health").json
    assert answer["nodes"][1] == {
        "id": "node-1",
        "name": "host1",
        "status": "online",
        "seen_s": 0.5,
        "faults": ["no step for 9 s"],
    }
    slow, thin = answer["network"]["warnings"]  # 3 ms, and 50 MB/s
    assert "takes 3.0 ms" in slow
    assert "carries 400 Mbit/s" in thin
    assert "exchange.communication_strategy=compressed" in thin
    fast = a_cluster().network
    fast = replace(fast, links=[replace(fast.links[0], round_trip_s=0.002, bytes_per_s=125e6)])
    engine.job = a_cluster(network=fast)
    assert client.get(f"{AT}/health").json["network"]["warnings"] == []  # what is asked for exactly
    engine.job = a_cluster(network=None)
    assert "network" not in client.get(f"{AT}/health").json


WISHES = [
    ({}, Wish()),
    ({"distributed": True}, Wish(shards=2)),
    ({"distributed": False}, Wish(shards=1)),
    ({"shards": 2, "strategy": "balanced"}, Wish(shards=2, strategy="balanced")),
    ({"distributed": True, "strategy": "memory-optimized"}, Wish(strategy="memory-optimized")),
    ({"node_ids": ["node-1"]}, Wish(ranks=[[1]])),
    ({"node_ids": ["node-1", "node-0"]}, Wish(ranks=[[1], [0]])),
    ({"node_ids": ["node-1", "node-0"], "distributed": True}, Wish(ranks=[[1, 0]])),
    ({"node_ids": ["node-0", "node-1"], "shards": 2}, Wish(shards=2, ranks=[[0, 1]])),
    ({"replicas": 2}, Wish(replicas=2)),
    ({"streams": 8}, Wish(streams=8)),
    ({"streams": 8, "shards": 2}, Wish(shards=2, streams=8)),
    ({"replicas": 2, "distributed": True}, Wish(shards=1, replicas=2)),
    ({"replicas": 1, "shards": 2}, Wish(shards=2, replicas=1)),
    ({"replicas": 2, "node_ids": ["node-1", "node-0"]}, Wish(replicas=2, ranks=[[1], [0]])),
    ({"replicas": 1, "node_ids": ["node-1", "node-0"]}, Wish(replicas=1, ranks=[[1, 0]])),
    ({"context": 32, "keep_alive": "5m"}, Wish(context=32, keep_alive_s=300.0)),
    ({"keep_alive": -1, "strategy": None}, Wish(keep_alive_s=-1.0)),
]


@pytest.mark.parametrize(("body", "wish"), WISHES)
def test_what_a_load_asks_of_the_engine(client, engine, body: dict[str, Any], wish: Wish) -> None:
    response = client.post(f"{AT}/model/load", json={"model": "demo", **body})
    assert response.status_code == 200, response.json
    assert engine.wishes == [wish]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"shards": 3}, "cannot cut 2 attention heads into 3 shards; use at most 2 shards"),
        ({"shards": 2, "node_ids": ["node-1"]}, "cannot cut a model over 1 node into 2 shards"),
        ({"shards": 1, "node_ids": ["node-0", "node-1"], "distributed": True}, "1 shards do not fill the 2 nodes"),
        ({"shards": 2, "distributed": False}, "leave out distributed=false"),
        ({"streams": 0}, "streams is 0; it must be from 1 to 1000000 answers"),
        ({"replicas": 0}, "replicas is 0; it must be 1 or more"),
        ({"replicas": 3}, "3 replicas want as many nodes or more, and there are 2; use at most 2 replicas"),
        ({"replicas": 2, "shards": 2}, "2 replicas of 2 shards want 4 nodes, and there are 2; use fewer of one"),
        ({"replicas": 2, "node_ids": ["node-0"]}, "and node_ids names 1; use at most 1 replica"),
        ({"context": 0}, "context is 0; it must be from 1 to 2147483647 tokens"),
        ({"context": 10**30}, "context is 1000000000000000000000000000000; it must be from 1 to 2147483647 tokens"),
        ({"shards": 10**4000}, "into 1000000000000000000000000000000000000000... shards; use at most 2"),
    ],
)
def test_loads_that_cannot_be(client, engine, body: dict[str, Any], text: str) -> None:
    response = client.post(f"{AT}/model/load", json={"model": "demo", **body})
    assert (response.status_code, text in response.json["error"]) == (400, True), response.json
    assert engine.wishes == []


def test_shards_are_bounded_by_the_heads_of_the_model(client, engine) -> None:
    engine.job = a_cluster(world=4, nodes=[a_node(rank) for rank in range(4)])
    assert client.post(f"{AT}/model/load", json={"model": "demo", "distributed": True}).status_code == 200
    assert engine.wishes == [Wish(shards=2)]  # the model has two heads


def test_a_coordinator_among_the_nodes_of_a_load_is_refused_by_its_id(client, engine) -> None:
    engine.job = a_cluster(nodes=[a_node(0, role="coordinator"), a_node(1)])
    response = client.post(f"{AT}/model/load", json={"model": "demo", "node_ids": ["node-1", "host0"]})
    text = "Failed to load model: node-0 is the coordinator, which holds no weights; leave it out of node_ids"
    assert (response.status_code, response.json["error"]) == (400, text)
    assert engine.wishes == []


def test_nodes_are_shared_out_among_replicas(client, engine) -> None:
    engine.job = a_cluster(world=4, nodes=[a_node(rank) for rank in range(4)])
    body = {"model": "demo", "replicas": 2, "node_ids": ["node-0", "node-1", "node-2", "node-3"]}
    assert client.post(f"{AT}/model/load", json=body).status_code == 200
    assert client.post(f"{AT}/model/load", json={**body, "shards": 2}).status_code == 200
    assert engine.wishes == [Wish(replicas=2, ranks=[[0, 1], [2, 3]]), Wish(None, None, "auto", 2, 2, [[0, 1], [2, 3]])]
    response = client.post(f"{AT}/model/load", json={**body, "node_ids": body["node_ids"][:3]})
    text = "Failed to load model: 3 nodes of node_ids cannot be shared out evenly among 2 replicas; name 2 or 4"
    assert (response.status_code, response.json["error"]) == (400, text)


@pytest.mark.parametrize(
    ("code", "status", "begin", "hint"),
    [
        ("memory", 500, "Out of memory: 3 GiB are free; ", "memory-optimized"),
        ("model", 500, "Failed to load model: 3 GiB are free; ", "fewer shards"),
        ("request", 400, "Failed to load model: 3 GiB are free", ""),
        ("shutdown", 503, "3 GiB are free", ""),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_load_that_fails(client, engine, code: str, status: int, begin: str, hint: str, stream: bool) -> None:
    engine.placing = [EngineError(code, "3 GiB are free")]
    response = client.post(f"{AT}/model/load", json={"model": "demo", "stream": stream})
    text = response.json["error"]
    assert (response.status_code, text.startswith(begin), hint in text) == (status, True, True)
    assert ("Retry-After" in response.headers) == (status == 503)


def test_a_load_tells_how_far_it_is(client, engine) -> None:
    engine.placing = [Loading(1, 4), Loading(4, 4), Placed(a_placement())]
    response = client.post(f"{AT}/model/load", json={"model": "demo", "stream": True})
    assert response.mimetype == "application/x-ndjson"
    steps = [json.loads(line) for line in response.text.splitlines()]
    counts = [(step["completed"], step["total"]) for step in steps[:-1]]
    assert (counts, steps[-1]["status"]) == ([(1, 4), (4, 4)], "loaded")
    assert engine.streams[-1].closed


def test_what_is_being_loaded_is_left_alone(client, engine) -> None:
    engine.job = a_cluster(models=[a_placement(shards=0, replicas=[], state="loading")])
    for name in ("load", "unload"):
        response = client.post(f"{AT}/model/{name}", json={"model": "demo"})
        assert (response.status_code, "is being loaded" in response.json["error"]) == (409, True)
    assert (engine.wishes, engine.calls) == ([], [])
    (entry,) = client.get(f"{AT}/model/list").json["models"]
    assert entry == {"name": "demo:latest", "distributed": False, "nodes": [], "state": "loading"}
    assert client.get(f"{AT}/status").json["active_models"] == []


@pytest.mark.parametrize(("code", "status"), [("absent", 404), ("conflict", 409)])
def test_what_the_engine_refuses_to_unload(client, engine, code: str, status: int) -> None:
    engine.refusal = EngineError(code, "not now")
    response = client.post(f"{AT}/model/unload", json={"model": "demo"})
    assert (response.status_code, response.json) == (status, {"error": "not now"})


def test_a_job_leaves_once(client, engine) -> None:
    engine.refusal = EngineError("conflict", "the job is leaving already")
    assert client.post(f"{AT}/leave", json={"graceful": True}).status_code == 409
    engine.refusal = None
    for body in ({}, {"model": "demo"}, {"graceful": None}, {"node_id": ""}):  # for another route, or another node
        assert client.post(f"{AT}/leave", json=body).status_code == 400
    assert client.post(f"{AT}/leave", json={"graceful": False, "timeout": 1.5}).status_code == 200
    assert engine.calls == [("leave", False, 1.5)]


def test_a_node_leaves_and_comes_back(client, engine) -> None:
    left = client.post(f"{AT}/leave", json={"node_id": "host1", "graceful": False, "timeout": 3})
    message = "Node successfully left the cluster; demo:latest lies on node-0; 2 requests were not finished"
    assert (left.status_code, left.json) == (200, {"status": "left", "message": message})
    engine.refusal = EngineError("conflict", "node-1 has left already")
    assert client.post(f"{AT}/leave", json={"node_id": "node-1"}).status_code == 409
    engine.refusal = None
    faults = {"faults": ["layer 0 is bad"]}
    engine.job = a_cluster(nodes=[a_node(0), a_node(1, status="left", health=faults)], models=[])
    assert client.get(f"{AT}/nodes").json["nodes"][1]["status"] == "left"
    assert client.get(f"{AT}/status").json["status"] == "degraded"
    body = {"model": "demo", "shards": 2}
    assert "use at most 1 shard" in client.post(f"{AT}/model/load", json=body).json["error"]
    gateway = {"coordinator_host": "host0", "node_name": "node-1"}
    joined = client.post(f"{AT}/join", json=gateway)
    assert (joined.status_code, joined.json) == (
        200,
        {"status": "joined", "cluster_id": "host0:11434", "node_id": "node-1"},
    )
    assert engine.calls == [("take_out", 1, False, 3.0), ("take_in", 1)]
    assert client.post(f"{AT}/join", json=gateway | {"node_name": "host0"}).status_code == 409


def test_the_one_node_of_a_job_is_the_job(client, engine) -> None:
    engine.job = a_cluster(world=1, nodes=[a_node(0)], models=[])
    assert client.post(f"{AT}/leave", json={"node_id": "node-0"}).status_code == 200
    assert engine.calls == [("leave", True, 60.0)]


@pytest.mark.parametrize("path", [*READ, "model/load", "model/unload", "join", "leave"])
def test_without_an_engine_no_nodes_are_discovered(client, engine, path: str) -> None:
    engine.job = EngineError("unavailable", "the engine is not running or not ready; try again in a few seconds")
    body = {"coordinator_host": "h"} if path == "join" else {"model": "demo"} if path.startswith("model/") else {}
    response = client.get(f"{AT}/{path}") if path in READ else client.post(f"{AT}/{path}", json=body)
    assert response.status_code == 503
    assert response.json["error"].startswith("No nodes discovered: the engine is not running")
    assert "Retry-After" in response.headers


def test_models_that_nobody_knows_or_has_loaded(client, engine) -> None:
    for response in (
        client.get(f"{AT}/model/info?model=nobody"),
        client.get(f"{AT}/model/info?model=chatty"),
        client.post(f"{AT}/model/unload", json={"model": "nobody"}),
    ):
        assert response.status_code == 404
    assert client.get(f"{AT}/model/info").status_code == 400


def test_a_cluster_survives_the_wire_and_knows_no_strange_names() -> None:
    values = asdict(a_cluster())
    values["nodes"][0]["epoch"] = values["models"][0]["replicas"][0]["group"] = values["fenced"] = 1
    assert Cluster.from_wire(values) == a_cluster()
