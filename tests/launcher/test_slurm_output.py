"""What a Slurm job and its ranks print goes where it went; a srun that waits for a node that is gone is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

# what programs of these tests share; `_STEP_S` is what srun has to end by itself
HEAD = """
import os, subprocess, sys, threading, time
from ollampi.launcher import slurm_output
from ollampi.launcher.slurm_output import Output

ABORTED = "printf 'srun: Job step ab' >&2; printf 'orted: Waiting up to 62 seconds\\n' >&2;"
SLEEP = "while sleep 0.05; do :; done;"

def srun(script, name="srun", option="--kill-on-bad-exit=1"):
    return subprocess.Popen([name, "-c", script, option], executable="/bin/sh")

def timers():
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]

def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
"""


def run(program: str, out: int | IO[bytes] = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    """Return how a program ended whose stdout and stderr are one file, as those of a job."""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    return subprocess.run(
        [sys.executable, "-c", HEAD + program], stdout=out, stderr=subprocess.STDOUT, env=environ, timeout=120
    )


def test_all_that_is_printed_goes_on_as_it_is() -> None:
    program = """
print("before", flush=True)
output = Output()
print("own", flush=True)
srun("printf 'no end '; printf '\\\\377\\\\n' >&2; head -c 300000 /dev/zero").wait()
output.close()
print("after", flush=True)
print("to stderr", file=sys.stderr, flush=True)
"""
    done = run(program)
    assert done.returncode == 0, done.stdout[:2000]
    assert done.stdout == b"before\nown\nno end \xff\n" + bytes(300000) + b"after\nto stderr\n"


def test_a_srun_that_waits_for_a_node_that_is_gone_is_killed_and_nothing_else() -> None:
    program = """
slurm_output._STEP_S = 0.1
output = Output()
asking, other = srun(SLEEP, option="--overlap"), srun(SLEEP, name="mpirun")
starting = srun(ABORTED + SLEEP)
status = starting.wait(60)
lived = asking.poll() is None and other.poll() is None
for each in (asking, other):
    each.kill()
    each.wait()
output.close()
print("ended", status, lived, flush=True)
"""
    done = run(program)
    lines = done.stdout.decode().splitlines()
    assert lines == ["srun: Job step aborted: Waiting up to 62 seconds", f"ended {-signal.SIGKILL} True"]


def test_the_srun_of_the_next_start_is_spared() -> None:
    program = """
slurm_output._STEP_S = 1.0
output = Output()
first = srun(ABORTED)
until(timers)
first.wait(60)
second = srun(SLEEP)
until(lambda: not timers())
lived = second.poll() is None
second.kill()
second.wait()
output.close()
print("lived", lived, flush=True)
"""
    assert run(program).stdout.decode().splitlines()[-1] == "lived True"


def test_words_of_a_model_about_an_abort_kill_nothing() -> None:
    program = """
slurm_output._STEP_S = 0.0
output = Output()
told = srun("echo 'it said: srun: Job step aborted'; exit 5").wait()
output.close()
print("ended", told, len(timers()), flush=True)
"""
    assert run(program).stdout == b"it said: srun: Job step aborted\nended 5 0\n"


def test_a_full_disk_stops_nobody() -> None:
    program = """
output = Output()
told = srun("head -c 300000 /dev/zero; exit 5").wait(60)
output.close()
sys.stdout = None
os._exit(told)
"""
    with open("/dev/full", "wb") as full:
        assert run(program, full).returncode == 5
