"""`pull` and `push`: what they send, and how progress is shown where it cannot move and where it can."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_api import FakeApi

from ollampi.launcher import cli

SOURCE = Path(cli.__file__).parent.parent.parent
DIGEST = "sha256:" + "a" * 64
LINES = [
    {"status": "pulling manifest"},
    {"status": "pulling aaaaaaaaaaaa", "digest": DIGEST, "total": 100},
    {"status": "pulling aaaaaaaaaaaa", "digest": DIGEST, "total": 100, "completed": 100},
    {"status": "verifying sha256 digest"},
    {"status": "success"},
]


def test_pull_shows_plain_lines_beside_the_output(api: FakeApi) -> None:
    api.answers["/api/pull"] = LINES
    result = api.run("pull", "tiny")
    assert (result.exit_code, result.stdout) == (0, "")
    words = [line.partition(" (")[0] for line in result.stderr.splitlines()]
    layer = [f"pulling aaaaaaaaaaaa: {part} % of 100 B" for part in (0, 100)]
    assert words == ["pulling manifest", *layer, "verifying sha256 digest", "success"]
    assert api.requests == [("/api/pull", {"model": "tiny", "insecure": False, "stream": True})]


def test_pull_from_another_server(api: FakeApi) -> None:
    api.answers["/api/pull"] = LINES
    assert api.run("pull", "tiny", "--from", "node2:11500", "--insecure").exit_code == 0
    body = {"model": "tiny", "insecure": True, "from": "http://node2:11500", "stream": True}
    assert api.requests == [("/api/pull", body)]


def test_pull_from_a_strange_place(api: FakeApi) -> None:
    result = api.run("pull", "tiny", "--from", "ftp://x")
    assert (result.exit_code, api.requests) == (1, [])
    assert result.stderr.startswith("Error: --from is 'ftp://x'; it must be host, host:port")


def test_push(api: FakeApi) -> None:
    api.answers["/api/push"] = [{"status": "retrieving manifest"}, {"status": "success"}]
    result = api.run("push", "me/tiny", "--insecure")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "retrieving manifest\nsuccess\n")
    assert api.requests == [("/api/push", {"model": "me/tiny", "insecure": True, "stream": True})]


def test_a_pull_that_breaks_off_is_an_error(api: FakeApi) -> None:
    api.answers["/api/pull"] = LINES[:2]
    result = api.run("pull", "tiny")
    assert result.exit_code == 1
    assert "hung up before the answer was complete" in result.stderr.splitlines()[-1]


def test_ctrl_c_hangs_up(api: FakeApi) -> None:
    def endless() -> Iterator[dict[str, object]]:
        while not api.hung_up.is_set():
            time.sleep(0.005)
            yield LINES[0]

    api.answers["/api/pull"] = endless()
    environ = {**os.environ, "PYTHONPATH": str(SOURCE), "OLLAMA_HOST": api.host}
    line = [sys.executable, "-m", "ollampi", "pull", "tiny"]
    with subprocess.Popen(
        line,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"pulling manifest\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"\n"
    assert process.returncode == 130
    assert api.hung_up.wait(10)


def on_a_terminal(api: FakeApi, **environ: str) -> str:
    """Return what a pull writes to a terminal."""
    master, slave = pty.openpty()
    environ = {**os.environ, "PYTHONPATH": str(SOURCE), "OLLAMA_HOST": api.host, **environ}
    with subprocess.Popen(
        [sys.executable, "-m", "ollampi", "pull", "tiny"], env=environ, stdout=slave, stderr=slave, stdin=slave
    ) as process:
        os.close(slave)
        text = b""
        try:
            while piece := os.read(master, 4096):
                text += piece
        except OSError:  # how Linux says that nobody holds the other end any more
            pass
    os.close(master)
    assert process.returncode == 0
    return text.decode()


@pytest.mark.parametrize("colour", [{}, {"NO_COLOR": "1"}])
def test_a_terminal_shows_bars_without_colours(api: FakeApi, colour: dict[str, str]) -> None:
    api.answers["/api/pull"] = LINES
    text = on_a_terminal(api, TERM="xterm", **colour)
    assert "\x1b[1A\r\x1b[J" in text
    assert "100% [####" in text
    assert "m" not in {piece[:6].lstrip("0123456789;")[:1] for piece in text.split("\x1b[")[1:]}


def test_a_dumb_terminal_gets_plain_lines(api: FakeApi) -> None:
    api.answers["/api/pull"] = LINES
    text = on_a_terminal(api, TERM="dumb")
    assert "\x1b" not in text
    assert "pulling aaaaaaaaaaaa: 100 % of 100 B" in text
