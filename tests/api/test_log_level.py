"""POST /api/cluster/log-level changes how much every process logs; a line for each request tells no secret."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollampi.api.access import Permission
from ollampi.api.engine_client import EngineError
from ollampi.api.logs import adopt_gunicorn, log_with_ids
from ollampi.mpiruntime.log_files import LogSettings, close_logs, set_level


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    set_level("warning")


@pytest.mark.parametrize("path", ["/api/cluster/log-level", "/api/v1/cluster/log-level"])
def test_the_ranks_and_this_process_change_together(client: Any, engine: Any, path: str) -> None:
    answer = client.post(path, json={"level": "debug"})
    assert (answer.status_code, answer.json) == (200, {"level": "debug"})
    assert engine.calls == [("log_from", "debug")]
    assert logging.getLogger("ollampi.api.app").isEnabledFor(logging.DEBUG)


@pytest.mark.parametrize("path", ["/api/cluster/log-level", "/api/v1/cluster/log-level"])
def test_the_level_can_be_read(client: Any, engine: Any, path: str) -> None:
    for level in ("error", "info"):
        client.post(path, json={"level": level})
        answer = client.get(path)
        assert (answer.status_code, answer.json) == (200, {"level": level})
    assert engine.calls == [("log_from", "error"), ("log_from", "info")]
    assert client.application.config["ROUTES"][f"GET {path}"].permission is Permission.READ


@pytest.mark.parametrize(("level", "known"), [("warn", "warning"), ("trace", "debug"), ("DEBUG", "debug")])
def test_levels_have_the_names_that_the_settings_know(client: Any, engine: Any, level: str, known: str) -> None:
    assert client.post("/api/cluster/log-level", json={"level": level}).json == {"level": known}
    assert engine.calls == [("log_from", known)]


@pytest.mark.parametrize("body", [{}, {"level": ""}, {"level": "loud"}, {"level": "auto"}])
def test_another_level_is_refused_and_nothing_changes(client: Any, engine: Any, body: dict[str, Any]) -> None:
    answer = client.post("/api/cluster/log-level", json=body)
    assert answer.status_code == 400
    assert answer.json["error"].endswith("it must be one of debug, info, warning, error")
    assert engine.calls == []


def test_nothing_changes_here_where_the_engine_does_not_answer(
    client: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(level: str) -> None:
        raise EngineError("unavailable", "the engine does not answer; try again in a few seconds")

    monkeypatch.setattr(engine, "log_from", gone)
    assert client.post("/api/cluster/log-level", json={"level": "debug"}).status_code == 503
    assert not logging.getLogger("ollampi.api.app").isEnabledFor(logging.DEBUG)


def test_it_is_for_those_who_manage(client: Any) -> None:
    assert client.application.config["ROUTES"]["POST /api/cluster/log-level"].permission is Permission.MANAGE


def test_requests_are_logged_without_query_body_or_key(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    set_level("info")
    with caplog.at_level(logging.INFO, "ollampi.api.logs"):
        client.post(
            "/api/show?key=in-the-query",
            json={"model": "no-such-model"},
            headers={"Authorization": "Bearer in-the-header"},
        )
        client.get("/api/%0Aforged")
    lines = [record.getMessage() for record in caplog.records if record.name == "ollampi.api.logs"]
    assert [line.split(",")[0] for line in lines] == ["POST /api/show 404", "GET /api/\\nforged 404"]


def test_what_gunicorn_says_goes_to_the_file_of_this_process(tmp_path: Path) -> None:
    theirs = logging.getLogger("gunicorn.error")
    own, propagates = theirs.handlers[:], theirs.propagate
    theirs.handlers[:], theirs.propagate = [logging.NullHandler()], False
    try:
        log_with_ids(LogSettings(folder=str(tmp_path)))
        adopt_gunicorn()
        theirs.error("cannot accept connections")
        assert (tmp_path / "api_server.log").read_text().endswith("ERROR cannot accept connections\n")
        log_with_ids(LogSettings())
        theirs.handlers[:] = [kept := logging.NullHandler()]
        adopt_gunicorn()
        assert theirs.handlers == [kept]  # on stderr it writes itself
    finally:
        close_logs()
        theirs.handlers[:], theirs.propagate = own, propagates
