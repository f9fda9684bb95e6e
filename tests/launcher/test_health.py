"""A real server whose ranks are stopped and go on: what /livez, /readyz, /metrics and the log say meanwhile."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.servers import Server, endless_model, server, wait_until

from ollampi.launcher import serve
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.self_test import Finding

SOON_S = 25.0


def probe(job: Server, path: str) -> tuple[int, Any]:
    return job.request("GET", path, timeout_s=10)


def is_ready(job: Server) -> bool:
    return probe(job, "/readyz")[0] == 200


@contextmanager
def stopped(job: Server, rank: int) -> Iterator[None]:
    """Stop a rank until the block ends; it begins when the server is not ready, and ends when it is again."""
    pid = job.ranks()[rank]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: not is_ready(job), SOON_S, f"/readyz to say that rank {rank} is stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: is_ready(job), SOON_S, f"/readyz to say that rank {rank} is back")


def statuses(job: Server) -> dict[str, str]:
    """Return the status of each rank that a scrape shows."""
    status, text = job.request("GET", "/metrics")
    assert status == 200
    (family,) = [f for f in text_string_to_metric_families(text) if f.name == "ollampi_node_status"]
    return {s.labels["rank"]: s.labels["status"] for s in family.samples if s.value == 1}


def test_stopped_ranks_turn_readiness_off_and_on(tmp_path: Path) -> None:
    settings = [
        f"model={endless_model(tmp_path)}",
        "exchange.timeout_s=200",
        "cluster.health_check_interval=5m",
    ]  # no test shall meet a stop
    with server(3, tmp_path, *settings) as job:
        wait_until(lambda: is_ready(job), SOON_S, "the first self-test")
        assert probe(job, "/livez") == (200, {"status": "alive"})
        assert statuses(job) == {"0": "online", "1": "online", "2": "online"}

        with stopped(job, 1):  # while there is nothing to do
            status, told = probe(job, "/readyz")
            assert (status, told["status"]) == (503, "unready")
            assert {reason["rank"] for reason in told["reasons"]} == {1}
            assert "no heartbeat for" in told["reasons"][0]["reason"]
            assert probe(job, "/livez") == (200, {"status": "alive"})
            assert statuses(job) == {"0": "online", "1": "suspect", "2": "online"}

        with closing(http.client.HTTPConnection("127.0.0.1", job.port, timeout=60)) as connection:
            body = {
                "model": "endless",
                "prompt": "x",
                "raw": True,
                "options": {"num_predict": 10_000, "temperature": 0},
            }
            connection.request("POST", "/api/generate", json.dumps(body))
            stream = connection.getresponse()
            assert "response" in json.loads(stream.readline())
            with stopped(job, 2):  # while all others wait for it in a step
                told = probe(job, "/readyz")[1]
                assert {reason["rank"] for reason in told["reasons"]} == {2}
                assert probe(job, "/livez")[0] == 200
            lines = [json.loads(stream.readline()) for _ in range(5)]
            assert [line["done"] for line in lines] == [False] * 5
            stream.close()

        with stopped(job, 0):
            assert probe(job, "/livez") == (503, {"status": "dead"})
            assert probe(job, "/readyz")[1]["reasons"] == [{"rank": 0, "reason": "does not answer the HTTP process"}]
        assert probe(job, "/livez")[0] == 200
    log = job.log.read_text()
    for rank in (1, 2):
        assert f"ollampi: rank {rank} is suspect: no heartbeat for " in log
        assert f"ollampi: rank {rank} is online: its heartbeat is back" in log
    assert "rank 0 is" not in log


def test_the_loop_tests_watches_and_tells_that_it_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    health, looks, faults = Health(2, 1.0, 15.0, 10.0), list[str](), ["layer 0 is bad"]
    groups = SimpleNamespace(world=SimpleNamespace(ranks=(0, 1)))
    runner: Any = SimpleNamespace(
        groups=groups,
        health=health,
        lead_examine=lambda _: [Finding([], [], False), Finding(faults, [], False)],
    )
    models: Any = SimpleNamespace(hosted=list, busy=list, loading=False)
    doors: Any = SimpleNamespace(watch=lambda: looks.append("watch"))
    supervise, announce = serve._care(runner, models, doors)
    assert health.answer({"op": "readiness"})["reasons"][0] == (0, "starting")
    supervise()
    supervise()
    assert looks == ["watch"] * 2
    assert health.tests == {"passed": 0, "failed": 1}  # the next one is not due
    assert health.answer({"op": "readiness"})["reasons"] == [(1, "layer 0 is bad")]
    with monkeypatch.context() as patch:
        patch.setattr(models, "busy", lambda: [SimpleNamespace(ranks=(0,)), SimpleNamespace(ranks=(0, 2))])
        patch.setattr(health, "excuse", lambda ranks: looks.append(str(sorted(ranks))))
        supervise()
    assert looks[2:] == ["watch", "[0, 2]"]
    announce("draining for at most 60 s; running requests: 1")
    assert health.answer({"op": "readiness"})["reasons"] == [(0, "shutting down"), (1, "layer 0 is bad")]
    told = capsys.readouterr().err.splitlines()
    assert told == ["ollampi: rank 1: layer 0 is bad", "ollampi: draining for at most 60 s; running requests: 1"]
