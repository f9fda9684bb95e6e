"""Kill ranks under `ollampi launch --restarts`: the HTTP process stays, says so meanwhile, and answers again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.cluster_jobs import AT, ask
from support.kept import children, command_line
from support.leftovers import assert_nothing_is_left, launched, open_stream, shared_memory
from support.servers import Server, descendants, endless_model, free_port, wait_until

AGAIN_S = 120.0  # beside other tests, too
SHORT = {"num_predict": 3, "temperature": 0}
CHAT = [{"role": "user", "content": "import"}]
# Of each API: the route, the body of a short request, and where an error's text is.
APIS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "ollama": ("/api/generate", {"prompt": "import", "raw": True, "options": SHORT}, lambda body: body["error"]),
    "openai": ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 3}, lambda body: body["error"]["message"]),
    "anthropic": ("/v1/messages", {"messages": CHAT, "max_tokens": 3}, lambda body: body["error"]["message"]),
}


@contextmanager
def kept(tmp_path: Path, *more: str, restarts: int = 3) -> Iterator[Server]:
    """Run two ranks of a model without an end, which are started again."""
    with launched(
        tmp_path, f"launch -n 2 --restarts {restarts} model={endless_model(tmp_path)} {' '.join(more)}"
    ) as job:
        yield job


def post(connection: http.client.HTTPConnection, api: str, **more: Any) -> http.client.HTTPResponse:
    """Send the short request of an API on a connection and return the answer, not read yet."""
    route, body, _ = APIS[api]
    headers = {"Content-Type": "application/json", "Anthropic-Version": "2023-06-01"}
    connection.request("POST", route, json.dumps({"model": "endless", "stream": False, **body, **more}), headers)
    return connection.getresponse()


def front_of(job: Server) -> int:
    """Return the process id of the HTTP process."""
    (found,) = [pid for pid in children(job.process.pid) if b"ollampi.api.front" in command_line(pid)]
    return found


def is_alive(connection: http.client.HTTPConnection) -> bool:
    """Return whether /livez is answered with 200; the connection would end if it were silent for 30 s."""
    connection.request("GET", "/livez")
    with connection.getresponse() as answer:
        return (answer.status, answer.read()) == (200, b'{"status":"alive"}')


def num_starts(job: Server) -> int:
    """Return how often ranks were ready."""
    return job.log.read_text().count("serving at")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_503_and_no_connection(tmp_path: Path, rank: int) -> None:
    with (
        kept(tmp_path) as job,
        closing(http.client.HTTPConnection("127.0.0.1", job.port, timeout=AGAIN_S)) as connection,
    ):
        with post(connection, "ollama") as answer:
            assert answer.status == 200
            text = json.loads(answer.read())["response"]
        front, port = front_of(job), connection.sock.getsockname()
        ranks = job.ranks()
        os.kill(ranks[rank], signal.SIGKILL)
        with post(connection, "ollama") as answer:  # while the others end
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5"), answer.read()
            answer.read()
        wait_until(lambda: "starting them again" in job.log.read_text(), AGAIN_S, "the ranks to end")
        for api, (_, _, error) in APIS.items():  # the next start takes seconds
            with post(connection, api) as answer:
                body = json.loads(answer.read())
                assert (answer.status, answer.headers["Retry-After"]) == (503, "5"), body
                assert error(body).startswith("the ranks ended with status 137 and are being started again"), body
        assert is_alive(connection)
        connection.request("GET", "/readyz")
        with connection.getresponse() as answer:
            (reason,) = json.loads(answer.read())["reasons"]
            assert (answer.status, answer.headers["Retry-After"], "try again" in reason["reason"]) == (503, "5", True)
        wait_until(lambda: is_alive(connection) and num_starts(job) == 2, AGAIN_S, "the ranks to be back")
        for api in APIS:
            with post(connection, api) as answer:
                body = json.loads(answer.read())
                assert answer.status == 200, body
                assert api != "ollama" or body["response"] == text
        assert (connection.sock.getsockname(), front_of(job)) == (port, front)
        assert not set(job.ranks()) & set(ranks)
    assert "ollampi: the ranks ended with status 137; starting them again in 0.2 s" in job.log.read_text()


def test_streams_that_are_cut_end_with_an_error_and_signals_end_all(tmp_path: Path) -> None:
    before = shared_memory()
    with kept(tmp_path, "engine.max_drafts=0") as job:
        limits = {"ollama": {"options": {"num_predict": 100_000}}}
        connections, answers = {}, {}
        for api in APIS:
            connections[api] = http.client.HTTPConnection("127.0.0.1", job.port, timeout=AGAIN_S)
            more: dict[str, Any] = {"stream": True, **limits.get(api, {"max_tokens": 100_000})}
            answers[api] = post(connections[api], api, **more)
            assert answers[api].status == 200
            answers[api].readline()
        os.kill(job.ranks()[1], signal.SIGKILL)
        ends = {api: answers[api].read().decode().strip().splitlines()[-1] for api in APIS}
        for connection in connections.values():
            connection.close()
        for api, (_, _, error) in APIS.items():
            line = ends[api].removeprefix("data: ")
            assert error(json.loads(line)), ends[api]
        wait_until(lambda: num_starts(job) == 2, AGAIN_S, "the ranks to be back")
        pids = job.processes()
        job.signal(signal.SIGTERM)
        assert job.process.wait(AGAIN_S) == 0, job.log.read_text()
        assert_nothing_is_left(job, pids, before, within_s=AGAIN_S)


def test_a_rank_that_is_stopped_is_named_and_the_others_are_started_again(tmp_path: Path) -> None:
    with kept(tmp_path, "engine.max_drafts=0", "exchange.timeout_s=5") as job:
        with open_stream(job, 100_000) as stream:
            stopped = job.ranks()[1]
            os.kill(stopped, signal.SIGSTOP)
            received = b""
            while data := stream.recv(65536):
                received += data
        last = next(line for line in reversed(received.decode().splitlines()) if line.startswith("{"))
        error = json.loads(last)["error"]
        assert error.startswith(f"the server is ending, since rank 1 (host {os.uname().nodename}) has not come to"), (
            last
        )
        assert error.endswith("; it is being started again")
        wait_until(lambda: num_starts(job) == 2, AGAIN_S, "the ranks to be back")
        assert stopped not in job.ranks()
        body = {"model": "endless", "stream": False, **APIS["ollama"][1]}
        assert job.request("POST", "/api/generate", body)[0] == 200


def test_a_drain_finishes_what_runs_and_starts_nothing(tmp_path: Path) -> None:
    with kept(tmp_path, f"drain_timeout_s={AGAIN_S}") as job:
        with open_stream(job, 200) as stream:
            job.signal(signal.SIGUSR1)
            received = b""
            while data := stream.recv(65536):
                received += data
        last = next(line for line in reversed(received.decode().splitlines()) if line.startswith("{"))
        assert '"done_reason":"length"' in last, last
        assert json.loads(last)["eval_count"] == 200
        assert job.process.wait(AGAIN_S) == 0, job.log.read_text()
    assert num_starts(job) == 1


def test_a_job_that_is_told_to_leave_is_not_started_again(tmp_path: Path) -> None:
    with kept(tmp_path) as job:
        assert ask(job, "POST", f"{AT}/leave", {"graceful": False})["status"] == "left"
        assert job.process.wait(AGAIN_S) == 0, job.log.read_text()
    assert num_starts(job) == 1


def test_the_launcher_killed_leaves_nothing_also_between_two_starts(tmp_path: Path) -> None:
    before = shared_memory()
    with kept(tmp_path) as job:
        os.kill(job.ranks()[0], signal.SIGKILL)
        wait_until(lambda: "starting them again" in job.log.read_text(), AGAIN_S, "the ranks to end")
        pids = job.processes()
        assert front_of(job) in pids
        job.process.kill()
        assert_nothing_is_left(job, [*pids, *descendants(job.process.pid)], before, within_s=AGAIN_S)


def test_a_model_that_is_not_there_is_said_again_at_the_end(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "ollampi", "launch", "-n", "2", "--restarts", "9", "model=/no/such"]
    done = subprocess.run(
        [*line, f"server.port={free_port()}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 1, done.stdout
    said = [text for text in done.stdout.splitlines() if text.startswith("ollampi: model '/no/such' not found")]
    assert len(said) == 4, done.stdout
    assert len(set(said)) == 1
    assert "ollampi: the ranks ended 3 times in a row before they were ready" in done.stdout
