"""A load that takes long is seen: on a terminal as one line that moves, elsewhere as few lines."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ollampi.launcher.progress import Progress, on_terminal
from ollampi.launcher.rate import short_time
from ollampi.launcher.supervise import TERMINAL


class Shown:
    """A progress with a clock that is set, and what it wrote."""

    def __init__(self, moving: bool) -> None:
        self.text, self.now = "", 0.0
        self.progress = Progress(self._write, moving, lambda: self.now)

    def _write(self, text: str) -> None:
        self.text += text

    def run(self, name: str, seconds: float, pieces: int) -> str:
        """Return what is written of a load of 1 GiB that takes so long."""
        self.text = ""
        for piece in range(pieces + 1):
            self.progress(name, (piece << 30) // pieces, 1 << 30)
            self.now += seconds / pieces
        self.progress(name, 1 << 30, 1 << 30)
        return self.text

    def screen(self) -> list[str]:
        """Return the lines that a terminal shows at the end."""
        lines: list[str] = []
        for line in self.text.splitlines():
            if line.startswith("\x1b[A\x1b[2K"):
                lines.pop()
            lines.append(line.removeprefix("\x1b[A\x1b[2K"))
        return lines


@pytest.mark.parametrize("moving", [True, False])
def test_a_short_load_is_silent(moving: bool) -> None:
    assert Shown(moving).run("demo", 0.15, 10) == ""


def test_a_terminal_shows_one_line_for_each_model() -> None:
    shown = Shown(True)
    text = shown.run("demo:latest", 30, 1000)
    assert shown.screen() == ["ollampi: reading demo:latest [########] 100 % of 1 GiB, 34.1 MiB/s"]
    assert 100 < text.count("\n") < 160
    assert "[#.......] 13 % of 1 GiB, 34.1 MiB/s, 27 s left" in text
    shown.run("x" * 200, 30, 1000)
    assert shown.text[0] != "\x1b"  # the line of the first model stays
    assert len(shown.screen()[0]) < 80
    shown.run("x" * 200, 30, 1000)  # the same once more
    assert shown.text[0] != "\x1b"


def test_elsewhere_a_line_comes_every_ten_seconds() -> None:
    lines = Shown(False).run("demo:latest", 35, 1000).splitlines()
    assert [line.split(" of ")[0] for line in lines] == [f"ollampi: reading demo:latest {p} %" for p in (28, 57, 85)]
    assert Shown(False).run("demo:latest", 9.9, 100) == ""


def test_rate_and_time_left_are_those_of_the_last_seconds() -> None:
    shown = Shown(False)
    for second in range(31):  # ten times as fast in its second half
        passed = second if second <= 15 else 15 + 10 * (second - 15)
        shown.progress("x", passed << 20, 1 << 30)
        shown.now += 1
    first, second = (line.partition(" of 1 GiB, ")[2] for line in shown.text.splitlines()[:2])
    assert first == "1 MiB/s, 17 min left"
    assert second == "10 MiB/s, 2 min left"


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, "1 s"), (59.5, "60 s"), (91, "2 min"), (5400, "90 min"), (5401, "2 h"), (7201, "3 h")]
)
def test_times_have_one_unit(seconds: float, told: str) -> None:
    assert short_time(seconds) == told


def test_a_load_that_stands_still_has_no_rate() -> None:
    shown = Shown(False)
    for _ in range(40):
        shown.progress("x", 1 << 20, 1 << 30)
        shown.now += 1
    assert [line.partition(" % ")[2] for line in shown.text.splitlines()] == ["of 1 GiB"] * 3


def test_a_load_without_bytes() -> None:
    shown = Shown(True)
    shown.progress("empty", 0, 0)
    assert shown.text == ""


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({}, False), ({TERMINAL: "1"}, False), ({TERMINAL: "1", "TERM": "xterm"}, True), ({"TERM": "xterm"}, False)],
)
def test_mpirun_is_known_to_write_to_a_terminal(environ: dict[str, str], expected: bool) -> None:
    assert on_terminal(io.StringIO(), environ) is expected


@pytest.mark.parametrize("there", [True, False])
def test_launch_tells_the_ranks_of_its_terminal(tmp_path: Path, there: bool) -> None:
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "mpirun (Open MPI) 5.0.1" || echo "told <${TERMINAL}>"\n'
    )
    mpirun.chmod(0o755)
    parent, child = pty.openpty()
    line = [sys.executable, "-m", "ollampi", "launch", "--mpirun", str(mpirun)]
    done = subprocess.run(
        line, stdout=subprocess.PIPE, stderr=child if there else subprocess.DEVNULL, text=True, timeout=60
    )
    os.close(parent)
    os.close(child)
    assert f"told <{'1' if there else ''}>" in done.stdout
