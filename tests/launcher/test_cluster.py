"""The routes and commands of the cluster on a real server of two ranks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from support.cluster_jobs import AT, ask, run
from support.servers import Server, endless_model, server, wait_until

NODES = ["node-0", "node-1"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server of two ranks with `demo` in memory, and `endless` and the damaged `broken` on disk."""
    folder = tmp_path_factory.mktemp("cluster")
    endless = endless_model(folder)
    shutil.copytree(endless, folder / "broken")
    (folder / "broken" / "model.safetensors").write_bytes(b"no weights")
    with server(2, folder, f"model_folders=[{endless},{folder / 'broken'}]") as running:
        yield running


def refusal(job: Server, path: str, body: Any) -> tuple[int, str]:
    """Return status and text of a request that is refused and changes nothing."""
    before = ask(job, "GET", f"{AT}/model/list")
    status, answer = job.request("POST", f"{AT}/{path}", body)
    assert ask(job, "GET", f"{AT}/model/list") == before
    return status, answer["error"]


def test_status(job: Server) -> None:
    answer = ask(job, "GET", f"{AT}/status")
    assert answer.pop("uptime") >= 0
    assert answer == {
        "status": "healthy",
        "nodes": 2,
        "coordinator_nodes": 1,
        "worker_nodes": 1,
        "active_models": ["demo:latest"],
        "discovery_method": "mpi",
    }
    assert ask(job, "GET", "/api/v1/cluster/status")["nodes"] == 2
    alive = ask(job, "GET", "/api/v1/health")
    assert (alive["status"], alive["node_id"]) == ("healthy", "node-0")


def test_nodes(job: Server) -> None:
    nodes = ask(job, "GET", f"{AT}/nodes")["nodes"]
    assert [(node["id"], node["rank"], node["role"]) for node in nodes] == [
        ("node-0", 0, "mixed"),
        ("node-1", 1, "worker"),
    ]
    host = nodes[0]["host"]
    assert [node["name"] for node in nodes] == [f"{host}-0", f"{host}-1"]  # both ranks share it
    for place, node in enumerate(nodes, 1):
        assert node["status"] == "online"
        assert node["api_port"] == job.port
        assert node["endpoint"] == f"http://127.0.0.1:{job.port}"
        assert node["models"] == [f"demo:latest:shard-{place}"]
        has = node["resources"]
        assert 0 < has["memory_available"] <= has["memory_total"]
        assert has["cpu_cores"] >= 1


def test_health_has_the_network_of_the_start(job: Server) -> None:
    answer = ask(job, "GET", f"{AT}/health")
    assert [node["status"] for node in answer["nodes"]] == ["online"] * 2
    (link,) = answer["network"]["links"]
    assert link["node"] == "node-1"
    assert link["round_trip_ms"] > 0
    assert link["mbit_per_s"] > 0
    assert [each["bytes"] for each in answer["network"]["all_reduce"]] == [8192, 1 << 17]


def test_where_the_models_lie(job: Server) -> None:
    listed = ask(job, "GET", f"{AT}/model/list")["models"]
    assert [(m["name"], m["distributed"], m["shards"], m["nodes"]) for m in listed] == [("demo:latest", True, 2, NODES)]
    (replica,) = ask(job, "GET", f"{AT}/model/info?model=demo")["replicas"]
    shards = replica["shards"]
    assert [shard["node"] for shard in shards] == NODES
    for name, count in (("heads", 8), ("kv_heads", 2), ("columns", 768)):  # of the demo model; the parts tile it
        assert [shard[name] for shard in shards] == [[0, count // 2], [count // 2, count]]
    assert all(shard["bytes"] > 0 for shard in shards)


def test_load_use_and_unload(job: Server) -> None:
    lines = ask(job, "POST", f"{AT}/model/load", {"model": "endless", "distributed": True, "stream": True}).splitlines()
    steps = [json.loads(line) for line in lines]
    assert steps[-1] == {"status": "loaded", "model": "endless", "distributed": True, "shards": 2, "nodes": NODES}
    assert [step["status"] for step in steps[:-1]] == ["loading"] * (len(steps) - 1)
    assert steps[0]["total"] >= steps[0]["completed"] >= 0
    assert ask(job, "POST", f"{AT}/model/load", {"model": "endless"})["status"] == "loaded"  # it is there already
    options = {"num_predict": 3, "temperature": 0}
    body = {"model": "endless", "prompt": "import", "stream": False, "options": options}
    assert ask(job, "POST", "/api/generate", body)["eval_count"] == 3
    assert ask(job, "GET", f"{AT}/status")["active_models"] == ["demo:latest", "endless:latest"]
    unloaded = ask(job, "POST", f"{AT}/model/unload", {"model": "endless"})
    assert unloaded == {"status": "unloaded", "model": "endless"}
    assert ask(job, "GET", f"{AT}/status")["active_models"] == ["demo:latest"]
    assert refusal(job, "model/unload", {"model": "endless"})[0] == 404


def test_a_model_at_work_is_not_unloaded(job: Server) -> None:
    body = json.dumps({"model": "endless", "prompt": "import", "options": {"num_predict": 100_000}})
    connection = HTTPConnection("127.0.0.1", job.port, timeout=60)
    try:
        connection.request("POST", "/api/generate", body)
        response = connection.getresponse()
        assert json.loads(response.readline())["done"] is False
        status, text = refusal(job, "model/unload", {"model": "endless"})
        assert (status, "busy with 1 request" in text) == (409, True)
        assert json.loads(response.readline())["done"] is False  # it goes on
    finally:
        connection.close()
    wait_until(
        lambda: job.request("POST", f"{AT}/model/unload", {"model": "endless"})[0] == 200, 10, "the model to rest"
    )


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"model": "nobody"}, 404, "model 'nobody' not found"),
        ({}, 400, "model is required"),
        ({"model": "demo", "strategy": "fast"}, 400, "strategy 'fast' is unknown; it must be auto,"),
        (
            {"model": "demo", "node_ids": ["node-2"]},
            404,
            "node 'node-2' is not in this cluster, which has: node-0, node-1",
        ),
        ({"model": "demo", "node_ids": ["node-1", "node-1"]}, 400, "Failed to load model: node_ids names a node twice"),
        ({"model": "demo", "shards": 3}, 400, "Failed to load model: cannot cut a model over 2 nodes into 3 shards"),
        ({"model": "demo", "shards": 0}, 400, "Failed to load model: shards is 0; it must be 1 or more"),
        ({"model": "broken"}, 500, "Failed to load model: "),
    ],
)
def test_loads_that_are_refused(job: Server, body: dict[str, Any], status: int, text: str) -> None:
    found, told = refusal(job, "model/load", body)
    assert (found, told[: len(text)]) == (status, text)


def test_nobody_joins_or_leaves_alone(job: Server) -> None:
    name = ask(job, "GET", f"{AT}/nodes")["nodes"][1]["name"]
    gateway = {"coordinator_host": "10.0.0.1", "node_role": "worker"}
    begin = "Failed to register with coordinator: "
    status, text = refusal(job, "join", gateway)
    assert (status, text.startswith(f"{begin}10.0.0.1:11434")) == (501, True)
    status, text = refusal(job, "join", gateway | {"node_name": name})
    assert (status, text.startswith(f"{begin}{name} is a rank of this job")) == (409, True)
    for wrong in ({"coordinator_port": 0}, {"node_role": "king"}, {"coordinator_host": ""}):
        assert refusal(job, "join", gateway | wrong)[0] == 400
    assert refusal(job, "leave", {"node_id": "node-9"})[0] == 404
    status, text = refusal(job, "leave", {"node_id": "node-1"})
    assert (status, "the replica of demo:latest on node-0, node-1 would stop" in text) == (409, True)
    status, text = refusal(job, "leave", {"node_id": "node-0", "graceful": False})
    assert (status, text.partition(" and ")[0]) == (409, "node-0 coordinates the job")
    assert refusal(job, "leave", {"timeout": -1})[0] == 400
    assert "leave ends the whole job" in refusal(job, "leave", {"model": "demo"})[1]


def test_a_node_leaves_and_another_one_takes_over(job: Server) -> None:
    """An answer goes on meanwhile; a model that lies on the node moves, nothing is placed on it until it is back."""
    options = {"num_predict": 200, "temperature": 0}
    body = {"model": "endless", "prompt": "import", "raw": True, "stream": False, "options": options}
    before = ask(job, "POST", "/api/generate", body)["response"]
    ask(job, "POST", f"{AT}/model/unload", {"model": "demo"})
    ask(job, "POST", f"{AT}/model/load", {"model": "endless", "node_ids": ["node-1"]})
    roles = [(node["role"], node["models"]) for node in ask(job, "GET", f"{AT}/nodes")["nodes"]]
    assert roles == [("mixed", []), ("worker", ["endless:latest:shard-1"])]
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(job.request("POST", "/api/generate", body)))
    thread.start()
    said = run(job, "cluster", "leave", "--node-id", "node-1")
    assert said == "Node successfully left the cluster; endless:latest lies on node-0\n"
    thread.join(60)
    assert answers[0][1]["response"] == before
    assert [(n["status"], n["models"]) for n in ask(job, "GET", f"{AT}/nodes")["nodes"]] == [
        ("online", ["endless:latest:shard-1"]),
        ("left", []),
    ]
    assert ask(job, "POST", "/api/generate", body)["response"] == before
    assert "node-1 has left already" in run(job, "cluster", "leave", "--node-id", "node-1", status=1)
    status, text = refusal(job, "model/load", {"model": "demo", "node_ids": ["node-1"]})
    assert (status, "rank 1 has left" in text) == (400, True)
    back = ask(job, "POST", f"{AT}/join", {"coordinator_host": "127.0.0.1", "node_name": "node-1"})
    assert (back["status"], back["node_id"]) == ("joined", "node-1")
    ask(job, "POST", f"{AT}/model/unload", {"model": "endless"})
    ask(job, "POST", f"{AT}/model/load", {"model": "demo", "distributed": True})
    assert ask(job, "GET", f"{AT}/model/list")["models"][0]["nodes"] == NODES


def test_the_proxys_routes(job: Server) -> None:
    assert ask(job, "GET", "/api/v1/proxy/status") == {
        "status": "healthy",
        "instance_count": 1,
        "healthy_instances": 1,
        "load_balancer": "least_connections",
    }
    before = ask(job, "GET", "/api/v1/proxy/metrics")
    job.generate("import os", 3)
    after = ask(job, "GET", "/api/v1/proxy/metrics")
    for name in ("total_requests", "successful_requests"):
        assert after[name] == before[name] + 1
    assert after["average_latency"] > 0
    (instance,) = ask(job, "GET", "/api/v1/proxy/instances")["instances"]
    assert (instance["id"], instance["node_id"], instance["status"]) == ("demo:latest#0", "node-0", "healthy")
    assert instance["request_count"] == after["instance_metrics"]["demo:latest#0"]["requests"] >= 1


def test_the_commands(job: Server) -> None:
    assert run(job, "cluster", "status").splitlines()[:2] == [
        "Status:       healthy",
        "Nodes:        2 (1 coordinator, 1 worker)",
    ]
    detailed = json.loads(run(job, "cluster", "status", "--detailed", "--json"))
    assert [node["id"] for node in detailed["node_list"]] == NODES
    assert [line.split()[0] for line in run(job, "cluster", "nodes").splitlines()] == ["ID", *NODES]
    assert run(job, "cluster", "health").startswith("The cluster is healthy.\n")
    diagnosis = run(job, "cluster", "diagnose")
    assert "all-reduce of 131072 bytes" in diagnosis
    assert run(job, "proxy", "status").splitlines()[1] == "Instances:        1 of 1 healthy"
    assert json.loads(run(job, "proxy", "instances", "--json"))["instances"][0]["status"] == "healthy"
    assert "total_requests" in json.loads(run(job, "proxy", "metrics", "--json"))
    url = f"http://127.0.0.1:{job.port}"
    line = [sys.executable, "-m", "ollampi", "proxy", "instances", "--api-url", url, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["instances"][0]["id"] == "demo:latest#0"


def test_the_commands_for_models(job: Server) -> None:
    text = run(job, "cluster", "model", "load", "--model", "endless", "--distributed")
    lines = text.splitlines()
    assert lines[:2] == ["Loading endless in distributed mode across 2 nodes...", "Downloading model if needed... done"]
    assert lines[2].startswith("Model partitioned into 2 shards, ")
    assert "(heads 0-3, KV head 0, columns 0-383, " in lines[3]
    assert "(heads 4-7, KV head 1, columns 384-767, " in lines[4]
    assert lines[5:] == ["Model loaded and ready for inference"]
    listed = json.loads(run(job, "cluster", "model", "list", "--json"))["models"]
    assert [model["name"] for model in listed] == ["demo:latest", "endless:latest"]
    assert "Strategy:    auto: " in run(job, "cluster", "model", "info", "--model", "endless")
    assert run(job, "cluster", "model", "unload", "--model", "endless") == "Model endless unloaded\n"
    assert "is not loaded" in run(job, "cluster", "model", "info", "--model", "endless", status=1)
