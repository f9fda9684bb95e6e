"""The commands of the cluster and the proxy against canned answers: what they print and what they send."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from click.testing import CliRunner
from support.clusters import a_cluster, a_node, a_placement
from support.fake_api import FakeApi

from ollampi.api.wires import cluster_entries as entries
from ollampi.launcher import cli_options
from ollampi.launcher.cli import main
from ollampi.launcher.cluster_words import info_text, partition_line, short_size
from ollampi.mpiruntime.cluster import Replica

AT = "/api/cluster"
PROXY = "/api/v1/proxy"


@pytest.fixture
def job(api: FakeApi) -> FakeApi:
    """Return a server that tells of the job of the tests."""
    cluster = a_cluster()
    api.answers |= {
        f"{AT}/status": [entries.status_answer(cluster)],
        f"{AT}/nodes": [{"nodes": [entries.node_entry(node, cluster) for node in cluster.nodes]}],
        f"{AT}/health": [entries.health_answer(cluster)],
        f"{AT}/model/list": [{"models": [entries.list_entry(model, cluster) for model in cluster.models]}],
        f"{AT}/model/info?model=demo": [entries.info_answer(cluster.models[0], cluster)],
        f"{PROXY}/status": [entries.proxy_status(cluster)],
        f"{PROXY}/instances": [entries.proxy_instances(cluster)],
        f"{PROXY}/metrics": [entries.proxy_metrics(cluster)],
    }
    return api


def test_status(job: FakeApi) -> None:
    assert job.run("cluster", "status").output == (
        "Status:       healthy\n"
        "Nodes:        2 (1 coordinator, 1 worker)\n"
        "Discovery:    mpi\n"
        "Uptime:       1m1s\n"
        "Models:       demo:latest\n"
    )
    lines = job.run("cluster", "status", "--detailed").output.splitlines()
    assert lines[6].split()[:4] == ["ID", "NAME", "ROLE", "STATUS"]
    assert lines[-1].split() == ["demo:latest", "yes", "2", "1", "auto", "node-0,", "node-1", "ready"]


def test_nodes(job: FakeApi) -> None:
    line = job.run("cluster", "nodes").output.splitlines()[2]
    assert re.split(r"\s{2,}", line) == [
        "node-1",
        "host1",
        "worker",
        "online",
        "host1",
        "11434",
        "8",
        "48 GB of 64 GB",
        "GPU of a test (30 B free)",
        "demo:latest:shard-2",
    ]


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (["cluster", "status"], f"{AT}/status"),
        (["cluster", "nodes"], f"{AT}/nodes"),
        (["cluster", "health"], f"{AT}/health"),
        (["cluster", "diagnose"], f"{AT}/health"),
        (["cluster", "model", "list"], f"{AT}/model/list"),
        (["cluster", "model", "info", "--model", "demo"], f"{AT}/model/info?model=demo"),
        (["proxy", "status"], f"{PROXY}/status"),
        (["proxy", "instances"], f"{PROXY}/instances"),
        (["proxy", "metrics"], f"{PROXY}/metrics"),
    ],
)
def test_json_is_what_the_server_says(job: FakeApi, command: list[str], path: str) -> None:
    assert json.loads(job.run(*command, "--json").stdout) == job.answers[path][0]
    assert job.run(*command).exit_code == 0


def test_the_list_shows_replicas_of_each_model(job: FakeApi) -> None:
    copies = a_placement("few:latest", shards=1, replicas=[Replica([0], [9]), Replica([1], [9])])
    coming = a_placement("new:latest", shards=0, replicas=[], state="loading")
    cluster = a_cluster(models=[copies, coming])
    job.answers[f"{AT}/model/list"] = [{"models": [entries.list_entry(model, cluster) for model in cluster.models]}]
    lines = [line.split() for line in job.run("cluster", "model", "list").output.splitlines()]
    assert lines[0] == ["NAME", "DISTRIBUTED", "SHARDS", "REPLICAS", "STRATEGY", "NODES", "STATE"]
    assert lines[1] == ["few:latest", "no", "1", "2", "-", "node-0,", "node-1", "ready"]
    assert lines[2] == ["new:latest", "no", "-", "-", "-", "loading"]


def test_diagnose_warns_of_a_slow_network_and_of_ill_nodes(job: FakeApi) -> None:
    output = job.run("cluster", "diagnose").output
    assert "node-1    host1    3.000 ms      400 Mbit/s" in output
    assert "all-reduce of 1048576 bytes: 2000 us" in output
    assert [line.split()[1:4] for line in output.splitlines() if line.startswith("Warning: ")] == [
        ["the", "round", "trip"],
        ["the", "link", "to"],
    ]
    ill = a_cluster(nodes=[a_node(0), a_node(1, status="offline", health={"faults": ["no step"]})], network=None)
    job.answers[f"{AT}/health"] = [entries.health_answer(ill)]
    lines = job.run("cluster", "diagnose").output.splitlines()
    assert lines[-2:] == ["Warning: node-1 is offline", "Warning: node-1: no step"]
    job.answers[f"{AT}/health"] = [entries.health_answer(a_cluster(network=None))]
    assert job.run("cluster", "diagnose").output.splitlines()[-1] == "No problem found."


def test_load_prints_what_the_document_shows(job: FakeApi) -> None:
    job.answers |= {
        "/api/show": [{}],
        f"{AT}/model/load": [{"status": "loading", "completed": 1, "total": 2}, {"status": "loaded", "model": "demo"}],
    }
    line = ["--model", "demo", "--distributed", "--shards", "2", "--strategy", "balanced"]
    assert job.run("cluster", "model", "load", *line).stdout == (
        "Loading demo in distributed mode across 2 nodes...\n"
        "Downloading model if needed... done\n"
        "Model partitioned into 2 shards, 100B to 150B per shard with its cache\n"
        "Shard 1: host0 (head 0, KV head 0, columns 0-7, 100B)\n"
        "Shard 2: host1 (head 1, KV head 0, columns 8-15, 150B)\n"
        "Model loaded and ready for inference\n"
    )
    sent = {"model": "demo", "distributed": True, "shards": 2, "strategy": "balanced", "stream": True}
    assert (f"{AT}/model/load", sent) in job.requests


@pytest.mark.parametrize(
    ("line", "begins"),
    [
        ([], "Loading demo..."),
        (["--distributed"], "Loading demo in distributed mode across 2 nodes..."),
        (["--distributed", "--strategy", "auto"], "Loading demo in distributed mode across 2 nodes..."),
        (["--distributed", "--strategy", "balanced"], "Loading demo in distributed mode..."),  # which decides
        (["--shards", "2", "--replicas", "3"], "Loading demo in distributed mode across 6 nodes..."),
        (["--node-ids", "node-0"], "Loading demo..."),
        (["--node-ids", "a,b,c", "--distributed"], "Loading demo in distributed mode across 3 nodes..."),
    ],
)
def test_a_load_names_a_number_of_nodes_that_is_sure(job: FakeApi, line: list[str], begins: str) -> None:
    job.answers |= {"/api/show": [{}], f"{AT}/model/load": [{"status": "loaded", "model": "demo"}]}
    assert job.run("cluster", "model", "load", "--model", "demo", *line).stdout.splitlines()[0] == begins


def test_a_coordinator_is_none_of_the_nodes_of_a_load(job: FakeApi) -> None:
    cluster = a_cluster(nodes=[a_node(0, role="coordinator"), a_node(1), a_node(2)], world=3)
    job.answers |= {"/api/show": [{}], f"{AT}/model/load": [{"status": "loaded", "model": "demo"}]}
    job.answers[f"{AT}/nodes"] = [{"nodes": [entries.node_entry(node, cluster) for node in cluster.nodes]}]
    stdout = job.run("cluster", "model", "load", "--model", "demo", "--distributed").stdout
    assert stdout.splitlines()[0] == "Loading demo in distributed mode across 2 nodes..."


def test_a_load_sends_replicas_context_and_keep_alive(job: FakeApi) -> None:
    job.answers |= {"/api/show": [{}], f"{AT}/model/load": [{"status": "loaded", "model": "demo"}]}
    options = ["--replicas", "2", "--shards", "1", "--streams", "8", "--context", "64", "--keep-alive", "-1", "--json"]
    assert job.run("cluster", "model", "load", "--model", "demo", *options).exit_code == 0
    wanted = {"replicas": 2, "shards": 1, "streams": 8, "context": 64, "keep_alive": "-1"}
    assert job.requests[-1][1] == {"model": "demo", **wanted, "stream": True}


def test_load_on_nodes(job: FakeApi) -> None:
    job.answers |= {"/api/show": [{}], f"{AT}/model/load": [{"status": "loaded", "model": "demo"}]}
    result = job.run("cluster", "model", "load", "--model", "demo", "--node-ids", "node-0, node-1", "--json")
    assert json.loads(result.stdout) == {"status": "loaded", "model": "demo"}
    assert job.requests[-1][1] == {"model": "demo", "node_ids": ["node-0", "node-1"], "stream": True}


def test_several_replicas_are_told_apart() -> None:
    cluster = a_cluster(models=[a_placement(shards=1, replicas=[Replica([0], [10**9]), Replica([1], [10**9])])])
    text = info_text(entries.info_answer(cluster.models[0], cluster))
    assert text.splitlines()[-2:] == ["Replica 1, shard 1: host0 (1GB)", "Replica 2, shard 1: host1 (1GB)"]


def test_shards_alike_have_one_size() -> None:
    cluster = a_cluster(models=[a_placement(shards=1, replicas=[Replica([0], [10**9]), Replica([1], [10**9])])])
    line = partition_line(entries.info_answer(cluster.models[0], cluster))
    assert line == "Model partitioned into 2 replicas of 1 shard, 1GB per shard with its cache\n"


@pytest.mark.parametrize(("size", "text"), [(37_500_000_000, "37.5GB"), (999, "999B"), (2_000_000, "2MB")])
def test_sizes_are_as_in_the_document(size: int, text: str) -> None:
    assert short_size(size) == text


def test_unload(job: FakeApi) -> None:
    job.answers[f"{AT}/model/unload"] = [{"status": "unloaded", "model": "demo"}]
    assert job.run("cluster", "model", "unload", "--model", "demo").output == "Model demo unloaded\n"
    assert job.run("cluster", "model", "unload").exit_code == 2


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ([], {"graceful": True, "timeout": 60}),
        (["--graceful", "--timeout", "5"], {"graceful": True, "timeout": 5}),
        (["--node-id", ""], {"graceful": True, "timeout": 60, "node_id": ""}),  # which the server refuses
        (["--node-id", "node-123", "--graceful", "false"], {"graceful": False, "timeout": 60, "node_id": "node-123"}),
    ],
)
def test_leave(job: FakeApi, line: list[str], body: dict[str, Any]) -> None:
    job.answers[f"{AT}/leave"] = [{"status": "left", "message": "Node successfully left the cluster"}]
    result = job.run("cluster", "leave", *line)
    assert result.stdout == "Node successfully left the cluster\n"
    asks = f"The server shall end once its running requests are done, in {body['timeout']} s at the latest...\n"
    assert result.stderr == (asks if "node_id" not in body else "")
    assert job.requests == [(f"{AT}/leave", {**body, "stream": False})]


def test_watch_shows_it_again_until_ctrl_c(job: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_options.time, "sleep", sleep)
    result = job.run("proxy", "metrics", "--watch", "--interval", "10")
    assert (result.exit_code, waits) == (cli_options.INTERRUPTED, [10, 10, 10])
    assert result.output.count("Requests:") == 3
    assert "Average latency:        2s\n" in result.output
    assert [path for path, _ in job.requests] == [f"{PROXY}/metrics"] * 3


def test_the_server_can_be_named_as_in_the_document(job: FakeApi) -> None:
    result = CliRunner().invoke(main, ["proxy", "status", "--api-url", f"http://{job.host}", "--json"])
    assert json.loads(result.stdout)["healthy_instances"] == 1


def test_names_of_nodes_cannot_steer_the_terminal(job: FakeApi) -> None:
    node = entries.node_entry(a_node(0, name="a\x1b[2Jb"), a_cluster())
    job.answers[f"{AT}/nodes"] = [{"nodes": [node]}]
    assert "\x1b" not in job.run("cluster", "nodes").stdout


def test_a_wrong_address_is_told_under_the_options_own_name(job: FakeApi) -> None:
    result = CliRunner().invoke(main, ["cluster", "status", "--api-url", "ftp://there"])
    assert (result.exit_code, result.stderr.startswith("Error: --api-url or --host is 'ftp://there'; it must be")) == (
        1,
        True,
    )
