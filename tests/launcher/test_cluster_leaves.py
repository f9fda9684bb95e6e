"""A job that leaves the cluster: a server of two ranks of its own for each test."""

from __future__ import annotations

import json
import threading
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from support.cluster_jobs import AT, ask, run
from support.servers import Server, endless_model, server, wait_until


def streaming(job: Server, count: int) -> tuple[HTTPConnection, HTTPResponse, dict[str, Any]]:
    """Return a connection with an answer of so many tokens that has begun, and what was asked."""
    connection = HTTPConnection("127.0.0.1", job.port, timeout=300)
    body = {"model": "endless", "prompt": "import", "options": {"num_predict": count}}
    connection.request("POST", "/api/generate", json.dumps(body))
    response = connection.getresponse()
    response.readline()
    return connection, response, body


def leaving(job: Server, body: dict[str, Any]) -> tuple[threading.Thread, list[tuple[int, Any]]]:
    """Return a thread that has the job leave, and where it puts the answer."""
    answers: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(job.request("POST", f"{AT}/leave", body, 300)))
    thread.start()
    return thread, answers


def test_a_job_that_leaves_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    with server(2, tmp_path, f"model={endless_model(tmp_path)}") as job:
        connection, response, body = streaming(job, 800)
        thread, answers = leaving(job, {"graceful": True, "timeout": 300})
        wait_until(lambda: ask(job, "GET", f"{AT}/status")["status"] == "leaving", 10, "the job to be leaving")
        refused = HTTPConnection("127.0.0.1", job.port, timeout=60)
        refused.request("POST", "/api/generate", json.dumps(body))
        answer = refused.getresponse()
        assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
        refused.close()
        status, again = job.request("POST", f"{AT}/leave", {"graceful": True})
        assert (status, "is leaving already" in again["error"]) == (409, True)
        last = json.loads(response.read().decode().splitlines()[-1])
        connection.close()
        assert (last["done_reason"], last["eval_count"]) == ("length", 800)
        thread.join(60)
        assert answers == [(200, {"status": "left", "message": "Node successfully left the cluster"})]
        assert job.process.wait(10) == 0


def test_a_job_that_leaves_at_once_ends_what_runs(tmp_path: Path) -> None:
    with server(2, tmp_path, f"model={endless_model(tmp_path)}") as job:
        connection, response, _ = streaming(job, 1_000_000)
        said = run(job, "cluster", "leave", "--graceful", "false")
        assert said == "Node successfully left the cluster; 1 request was not finished\n"
        assert job.process.wait(10) == 0
        assert json.loads(response.read().decode().splitlines()[-1])["error"]
        connection.close()
