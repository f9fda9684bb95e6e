"""Jobs that measure are heard line by line, and ended where they fall silent."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from ollampi.launcher.doctor_world import first_error, probe, watch
from ollampi.mpiruntime.doctor_words import MARK


def program(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(["import os, sys, time", *lines])]


def says(text: str, end: str = "\\n") -> str:
    return f"os.write(1, {MARK + text!r}.encode() + b'{end}')"


def test_what_is_told_is_taken_in_order_and_the_rest_left_out() -> None:
    text = MARK + '{"rank": 0}'
    seen = watch(
        program(
            "print('Warning: a library has something to say', flush=True)",
            says('{"began": "a"}'),
            f"os.write(1, b'[1,0]<stdout>: ' + {text!r}.encode()[:20])",
            "time.sleep(0.2)",
            f"os.write(1, {text!r}.encode()[20:] + b'\\n')",
            says('{"cut by ano'),
            says("[1, 2]"),
            says('{"end": true}', ""),
            "sys.exit(3)",
        ),
        os.environ,
        60.0,
    )
    assert seen.told == [{"began": "a"}, {"rank": 0}, {"end": True}]
    assert seen.status == 3
    assert seen.one("began") == {"began": "a"}
    assert seen.one("nothing") is None
    assert seen.why.startswith("Warning: a library has something to say")


def test_a_silent_job_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = f"os.fork() or (open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())), time.sleep(600))"
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    seen = watch(program(ignore, child, says('{"began": "a"}'), "time.sleep(600)"), os.environ, 1.0)
    assert seen.status is None
    assert seen.told == [{"began": "a"}]
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2:3]:
        assert time.monotonic() < end, "what the job started goes on"
        time.sleep(0.05)


def test_a_job_that_talks_on_is_not_silent() -> None:
    talk = [each for number in range(4) for each in (says(f'{{"stage": "{number}"}}'), "time.sleep(0.5)")]
    seen = watch(program(*talk), os.environ, 1.9)
    assert [each["stage"] for each in seen.told] == list("0123")
    assert seen.status == 0


def test_hosts_are_tried_each_by_itself() -> None:
    lines = {
        "good": program(says('{"began": "g"}')),
        "mute": program("time.sleep(600)"),
        "ended": program("sys.exit(7)"),
        "said": program("print('-' * 60); print('ssh: no route to host', file=sys.stderr); sys.exit(1)"),
    }
    assert probe(lines, os.environ, 2.0) == {
        "good": "",
        "mute": "no rank within 2 s",
        "ended": "status 7",
        "said": "ssh: no route to host",
    }
    assert probe({}, os.environ, 1.0) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ""),
        ("------\n\n  =====\n", ""),
        ("-----\nprterun was unable to\nlaunch:\n\n   Node: a\n-----\n", "prterun was unable to launch: Node: a"),
        ("x" * 500, "x" * 200),
    ],
)
def test_what_mpirun_complains_of_is_one_line(text: str, told: str) -> None:
    assert first_error(text) == told
