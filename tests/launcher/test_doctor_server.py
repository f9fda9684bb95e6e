"""`ollampi doctor --server`: what of a running server is well, against canned answers and a real one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.clusters import a_cluster
from support.fake_api import FakeApi
from support.servers import server

from ollampi.api.wires import cluster_entries as entries
from ollampi.launcher import doctor_server
from ollampi.launcher.cli import main
from ollampi.launcher.client import ApiError, Client
from ollampi.launcher.doctor_server import server_findings

AT, PROXY = "/api/cluster", "/api/v1/proxy"


@pytest.fixture
def job(api: FakeApi) -> FakeApi:
    """Return a server of which all is well."""
    cluster = a_cluster()
    nodes = [replace(node, status="online", health={}) for node in cluster.nodes]
    cluster = replace(cluster, nodes=nodes)
    api.answers |= {
        "/api/version": [{"version": "0.33.0"}],
        "/api/tags": [{"models": []}],
        "/metrics": [],
        f"{AT}/status": [entries.status_answer(cluster)],
        f"{AT}/health": [entries.health_answer(cluster)],
        f"{AT}/model/list": [{"models": [entries.list_entry(model, cluster) for model in cluster.models]}],
        f"{PROXY}/status": [entries.proxy_status(cluster)],
    }
    return api


def told(job: FakeApi) -> dict[str, list[str]]:
    """Return the status of the findings of each check."""
    result = CliRunner().invoke(main, ["doctor", "--server", job.host, "--json"])
    found: dict[str, list[str]] = {}
    for each in json.loads(result.stdout):
        found.setdefault(each["check"], []).append(each["status"])
    assert result.exit_code == any("error" in statuses for statuses in found.values())
    return found


def test_a_server_of_which_all_is_well(job: FakeApi) -> None:
    found = told(job)
    assert {status for statuses in found.values() for status in statuses} == {"ok"}
    assert list(found) == ["server", "nodes", "coordinator", "models", "replicas", "monitoring", "keys"]
    assert len(found["nodes"]) == 2


@pytest.mark.parametrize(
    ("path", "change", "check", "statuses"),
    [
        (f"{AT}/health", {"nodes": [{"id": "n", "status": "offline"}]}, "nodes", ["error"]),
        (f"{AT}/health", {"nodes": [{"id": "n", "status": "online", "faults": ["a sum"]}]}, "nodes", ["error"]),
        (f"{AT}/health", {"nodes": [{"id": "n", "status": "left"}]}, "nodes", ["ok"]),
        (f"{AT}/status", {"coordinator_nodes": 2}, "coordinator", ["error"]),
        (f"{AT}/status", {"coordinator_nodes": 0}, "coordinator", ["error"]),
        (f"{AT}/model/list", {"models": []}, "models", ["warning"]),
        (f"{AT}/model/list", {"models": [{"name": "m", "nodes": [], "state": "failed"}]}, "models", ["error"]),
        (f"{PROXY}/status", {"healthy_instances": 1, "instance_count": 2}, "replicas", ["error"]),
        (f"{PROXY}/status", None, "replicas", ["error"]),
        ("/metrics", None, "monitoring", ["error"]),
        ("/api/version", None, "server", ["error"]),
    ],
)
def test_what_is_not_well_is_told(
    job: FakeApi, path: str, change: dict[str, Any] | None, check: str, statuses: list[str]
) -> None:
    if change is None:
        del job.answers[path]
    else:
        job.answers[path] = [job.answers[path][0] | change]
    found = told(job)
    assert found.pop(check) == statuses
    assert {status for others in found.values() for status in others} <= {"ok"}


def test_no_server_is_one_error() -> None:
    (only,) = server_findings(Client("http://127.0.0.1:1"))
    assert (only.check, only.status) == ("server", "error")
    assert str(only.value).startswith("no server answers at http://127.0.0.1:1")


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_asks_for_another_key_has_no_nodes_that_are_gone(
    job: FakeApi, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    answer = Client.get

    def get(client: Client, path: str) -> Any:
        if path.startswith(AT):
            raise ApiError(status, "who are you?")
        return answer(client, path)

    monkeypatch.setattr(Client, "get", get)
    findings = server_findings(Client(f"http://{job.host}"))
    refused = [each for each in findings if each.check in ("nodes", "coordinator", "models")]
    assert [(each.status, each.value) for each in refused] == [("error", "no answer: who are you?")] * 3
    assert {each.remedy for each in refused} == {"set OLLAMA_API_KEY to a key of this server (docs/security.md)"}


def test_a_server_that_everybody_may_use_is_a_warning_beyond_this_host(
    job: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_server, "_LOOPBACK", ("::1",))
    assert told(job)["keys"] == ["warning"]


def test_a_real_server_with_keys_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    keys.write_text("admin " + "k" * 32 + "\n")
    keys.chmod(0o600)
    monkeypatch.setenv("OLLAMA_API_KEY", "k" * 32)
    with server(2, tmp_path, f"server.keys={keys}") as job:
        result = CliRunner().invoke(main, ["doctor", "--server", f"127.0.0.1:{job.port}", "--json"])
    found = {each["check"]: each for each in json.loads(result.stdout)}
    assert {each["status"] for each in found.values()} == {"ok"}, result.stdout
    assert found["keys"]["value"] == "asked for"
