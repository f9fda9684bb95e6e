"""GET /livez and /readyz: what rank 0 says, for orchestrators and load balancers, and little for strangers."""

from __future__ import annotations

import threading

import pytest

from ollampi.api.access import read_keys
from ollampi.api.app import create_app
from ollampi.api.engine_client import EngineError
from ollampi.api.errors import RETRY_AFTER_S
from ollampi.api.probes import Probes
from ollampi.api.settings import Settings
from ollampi.api.socket_engine import SocketEngine
from ollampi.api.whereabouts import Fixed
from ollampi.mpiruntime.request import Readiness

READER = "reader-key-0123456789"
SILENT = (1, "suspect: no heartbeat for 2.1 s")


def test_a_job_that_can_serve(client):
    for path, status in (("/livez", "alive"), ("/readyz", "ready")):
        answer = client.get(path)
        assert (answer.status_code, answer.json) == (200, {"status": status})
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Retry-After" not in answer.headers
        assert client.head(path).status_code == 200


def test_a_silent_rank_makes_the_job_unready_not_dead(client, engine):
    engine.well = Readiness(True, [SILENT, (2, "layer 3 is bad")])
    assert client.get("/livez").json == {"status": "alive"}
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == str(RETRY_AFTER_S)
    assert answer.json == {
        "status": "unready",
        "reasons": [{"rank": 1, "reason": SILENT[1]}, {"rank": 2, "reason": "layer 3 is bad"}],
    }


def test_a_loop_that_hangs_is_dead(client, engine):
    engine.well = Readiness(False, [(0, "the main loop hangs")])
    answer = client.get("/livez")
    assert (answer.status_code, answer.json) == (503, {"status": "dead"})
    assert client.get("/readyz").status_code == 503


def test_an_engine_that_does_not_answer_is_dead(client, engine):
    engine.well = EngineError("unavailable", "the engine does not answer")
    assert client.get("/livez").status_code == 503
    answer = client.get("/readyz")
    assert answer.json == {"status": "unready", "reasons": [{"rank": 0, "reason": "does not answer the HTTP process"}]}


@pytest.mark.parametrize(("header", "told"), [("", False), ("Bearer wrong", False), (f"Bearer {READER}", True)])
def test_strangers_learn_only_whether(engine, store, tmp_path, header, told):
    path = tmp_path / "keys"
    path.write_text(f"readonly {READER}\n")
    path.chmod(0o600)
    engine.well = Readiness(True, [SILENT])
    client = create_app(engine, store, Settings(keys=read_keys(path))).test_client()
    assert client.get("/livez").status_code == 200
    answer = client.get("/readyz", headers={"Authorization": header})
    assert answer.status_code == 503
    assert ("reasons" in answer.json) == told


def test_many_that_ask_at_a_time_ask_rank_0_once(engine):
    now = 10.0
    probes = Probes(engine, Settings().keys, lambda: now)
    threads = [threading.Thread(target=probes._ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.asked == 1
    now = 10.2
    assert probes._ask() == Readiness(True)
    assert engine.asked == 2


def test_over_the_socket(coordinator):
    engine = SocketEngine(Fixed(coordinator.address))
    assert engine.readiness() == Readiness(True, [])
    coordinator.expect("readiness")
    coordinator.well = {"live": False, "reasons": [[1, "suspect"]]}
    assert engine.readiness() == Readiness(False, [(1, "suspect")])
    engine.close()


def test_an_engine_that_is_stopped_is_not_waited_for_long(coordinator, monkeypatch):
    monkeypatch.setattr("ollampi.api.socket_engine.READINESS_TIMEOUT_S", 0.05)
    coordinator.deaf = True
    engine = SocketEngine(Fixed(coordinator.address))
    with pytest.raises(EngineError, match="does not answer"):
        engine.readiness()
    engine.close()
