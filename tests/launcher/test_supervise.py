"""Test that mpirun gets the signals, that its status is told, and that it does not outlive its supervisor."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.servers import alive, wait_until

from ollampi.launcher import supervise

SOURCE = Path(supervise.__file__).parents[2]
# Plays mpirun: notes its pid, ends with `status` at SIGTERM, notes SIGUSR1.
_MPIRUN = """
import os, signal, sys
def note(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit({status})
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, note)
print(os.getpid(), os.getpgrp() == os.getpid(), flush=True)
assert sys.stdin.read() == ""
while True:
    signal.pause()
"""


@contextmanager
def supervised(program: str, *before: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Run a program under the supervisor; give that process and the pid which the program prints first."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # nohup may have started these tests
    code += f"import os, sys; from ollampi.launcher.supervise import supervise; {';'.join(before) or 'pass'}; "
    code += f"sys.exit(supervise([sys.executable, '-c', {program!r}], os.environ))"
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, leads = process.stdout.readline().split()
        assert leads == "True"
        try:
            yield process, int(pid)
        finally:
            process.kill()
    wait_until(lambda: not alive(int(pid)), 2, "the program to end with its supervisor")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("status", "told"), [(0, 0), (1, 0), (137, 0), (3, 3)])
def test_an_end_that_was_asked_for_is_no_failure(number: int, status: int, told: int) -> None:
    with supervised(_MPIRUN.format(status=status)) as (process, _):
        assert process.stdout is not None
        os.kill(process.pid, signal.SIGUSR1)
        assert process.stdout.readline() == "SIGUSR1\n"
        os.kill(process.pid, number)
        assert process.stdout.readline() == "SIGTERM\n"
        assert process.wait(10) == told


@pytest.mark.parametrize("ending", ["sys.exit(1)", "sys.exit(5)", "os.kill(os.getpid(), 9)"])
def test_any_other_end_has_its_status(ending: str) -> None:
    with supervised(f"import os, sys; print(os.getpid(), os.getpgrp() == os.getpid(), flush=True); {ending}") as (p, _):
        assert p.wait(10) == {"sys.exit(1)": 1, "sys.exit(5)": 5}.get(ending, 137)


def test_a_drain_before_the_program_listens_is_no_failure() -> None:
    program = "import os, time; print(os.getpid(), os.getpgrp() == os.getpid(), flush=True); time.sleep(60)"
    with supervised(f"import sys; {program}") as (process, pid):
        os.kill(process.pid, signal.SIGUSR1)
        assert process.wait(10) == 0
        assert not alive(pid)


def test_a_signal_that_is_ignored_stays_so() -> None:
    with supervised(_MPIRUN.format(status=1), "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)") as (p, _):
        assert p.stdout is not None
        os.kill(p.pid, signal.SIGHUP)
        os.kill(p.pid, signal.SIGUSR1)
        assert p.stdout.readline() == "SIGUSR1\n"


def test_the_program_dies_with_its_supervisor() -> None:
    with supervised(_MPIRUN.format(status=1)) as (process, pid):
        process.kill()
        assert process.wait() == -signal.SIGKILL
        wait_until(lambda: not alive(pid), 2, "the program to be killed")
        assert not alive(pid)
