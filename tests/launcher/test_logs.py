"""The logs of a real job: a file for each part and rank, no secret in them, a level that changes while it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.servers import Server, free_port, run_to_end, server, wait_until

KEY, PROMPT = "an-admins-secret-key-1234", "a prompt that nobody shall read"


def ask(job: Server, path: str, body: dict[str, Any]) -> int:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    return job.send("POST", path, headers, json.dumps(body).encode())


def test_each_part_of_a_job_has_its_file_and_tells_no_secret(tmp_path: Path) -> None:
    keys, logs = tmp_path / "keys", tmp_path / "logs"
    keys.write_text(f"admin {KEY}\nuser {KEY}-of-a-user\n")
    keys.chmod(0o600)
    settings = [f"server.keys={keys}", f"logging.folder={logs}", "logging.format=json", "--debug-network"]
    with server(2, tmp_path, *settings) as job:
        body = {"model": "demo", "prompt": PROMPT, "stream": False, "options": {"num_predict": 3, "temperature": 0}}
        assert ask(job, "/api/generate", body) == 200
        forbidden = {"Authorization": f"Bearer {KEY}-of-a-user"}
        assert job.send("POST", "/api/cluster/log-level", forbidden, b'{"level": "debug"}') == 403
        assert ask(job, "/api/cluster/log-level", {"level": "error"}) == 200
        assert ask(job, "/api/generate", body) == 200
        assert ask(job, "/api/cluster/log-level", {"level": "info"}) == 200
        assert ask(job, "/api/generate", {**body, "keep_alive": 0}) == 200
        scheduler = logs / "model_scheduler.log"
        wait_until(lambda: "unloaded" in scheduler.read_text(), 60, "the model to go")
    found = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in logs.iterdir()}
    assert sorted(found) == [
        "api_server.log",
        "cluster_coordinator.log",
        "cluster_network-1.log",
        "cluster_network.log",
        "cluster_worker-1.log",
        "model_scheduler.log",
    ]
    everything = "".join(path.read_text() for path in logs.iterdir())
    assert KEY not in everything
    assert PROMPT not in everything
    requests = [
        line["message"].split(",")[0] for line in found["api_server.log"] if line["logger"] == "ollampi.api.logs"
    ]
    assert requests == [
        "POST /api/generate 200",
        "POST /api/cluster/log-level 403",  # the one that changed it to error is not told any more
        "POST /api/cluster/log-level 200",
        "POST /api/generate 200",
    ]
    assert all(line["request"] for line in found["api_server.log"] if line["logger"] == "ollampi.api.logs")
    scheduled = [line["message"] for line in found["model_scheduler.log"]]
    assert [line.split(": ")[0] for line in scheduled] == ["demo:latest loaded", "demo:latest unloaded"]
    begins = [line["message"] for line in found["cluster_worker-1.log"]]
    assert begins[0].startswith("rank 1 of 2 begins: process ")
    assert begins[1].startswith("demo:latest: ")
    told = [line["message"] for line in found["cluster_coordinator.log"]]
    assert any(line.startswith("serving demo:latest at http://") for line in told)
    assert any(line.startswith("stopping; ") for line in told)
    for name, carried in (("cluster_network.log", "tell"), ("cluster_network-1.log", "hear")):
        kinds = {line["message"].split(" of ")[0] for line in found[name]}
        assert {"all_reduce", "collect", carried} <= kinds


def test_a_folder_that_cannot_be_written_is_one_message_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, output = run_to_end(2, f"logging.folder={tmp_path}/file/logs", f"server.port={free_port()}")
    assert status != 0
    said = [line for line in output.splitlines() if line.startswith("ollampi:")]
    assert len(said) == 1, output
    assert said[0].startswith(
        f"ollampi: logging.folder is {tmp_path}/file/logs, where cluster_coordinator.log cannot be w"
    )
    assert said[0].endswith("give a folder that this user may write, or null for stderr")


def test_one_rank_is_asked_for_and_two_are_there(tmp_path: Path) -> None:
    status, output = run_to_end(2, "cluster.enabled=false", f"server.port={free_port()}")
    assert status != 0
    assert "ollampi: cluster.enabled is false, and there are 2 ranks; start one, or set it to true" in output


def test_models_that_are_preloaded_are_there_and_stay(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "conf" / "models" / "demo"
    (tmp_path / "second").symlink_to(folder)
    with server(2, tmp_path, f"cluster.preload=[{tmp_path}/second]", "--config", str(config(tmp_path))) as job:
        assert "ollampi: second:latest is loaded and stays" in job.log.read_text()
        assert "ollampi: cluster_port in" in job.log.read_text()
        models = job.request("GET", "/api/ps")[1]["models"]
        assert sorted(model["name"] for model in models) == ["demo:latest", "second:latest"]
        assert job.request("POST", "/api/generate", {"model": "second", "stream": False})[0] == 200
        stays = {m["name"]: m["expires_at"] for m in job.request("GET", "/api/ps")[1]["models"]}
        assert stays["second:latest"] > stays["demo:latest"]  # 292 years from now, and keep_alive_s of the file


def config(folder: Path) -> Path:
    path = folder / "cluster.json"
    path.write_text('{"cluster_port": 12094, "engine": {"keep_alive_s": "10m"}}')
    return path
