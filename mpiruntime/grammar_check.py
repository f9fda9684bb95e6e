"""Try a grammar in a process that may be lost, with limits on its time and memory."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ollampi.mpiruntime.errors import RequestError
from ollampi.mpiruntime.lifetime import die_with

CPU_S = 1.0
WALL_S = 10.0
GROWTH_BYTES = 256 << 20
_SLOW_TEXT = f"the grammar takes more than {CPU_S:g} s to compile; make it smaller"
_STARVED_TEXT = f"the grammar could not be compiled within {WALL_S:g} s; try again, or make it smaller"
_BIG_TEXT = f"the grammar cannot be compiled within {GROWTH_BYTES >> 20} MB; make it smaller"
_PRIORITY = 10  # the ranks compute on the same cores


class Check:
    """Runs `work` in a copy of this process, which must have one thread; `fileno` becomes readable at the end.

    starved: it was given up for lack of processor time, which says nothing about the grammar.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._result, theirs = os.pipe()
        self._ends = time.monotonic() + WALL_S
        parent = os.getpid()
        self.starved = False
        self._process = os.fork()
        if self._process == 0:
            _run(work, theirs, parent)
        os.close(theirs)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._result

    @property
    def left_s(self) -> float:
        """Return how long the check may still take."""
        return max(0.0, self._ends - time.monotonic())

    def end(self) -> str:
        """Return why the grammar is refused, empty where it is not; a check that is still busy is killed."""
        if not select.select([self._result], [], [], 0)[0]:
            os.kill(self._process, signal.SIGKILL)
        reason = _read(self._result)
        os.close(self._result)
        status = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        self.starved = status == -signal.SIGKILL
        if status == 0:
            return reason
        return _STARVED_TEXT if self.starved else _SLOW_TEXT if status == -signal.SIGPROF else _BIG_TEXT

    def cancel(self) -> None:
        """Kill the process."""
        os.kill(self._process, signal.SIGKILL)
        os.close(self._result)
        os.waitpid(self._process, 0)


def resident_bytes() -> int:
    """Return how much memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _run(work: Callable[[], object], result: int, parent: int) -> NoReturn:
    """Do the work under the limits and write why it is refused, if it is; the process ends here whatever happens."""
    status = 1
    try:
        die_with(parent)
        os.nice(_PRIORITY)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + GROWTH_BYTES
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a failing allocation prints is no news
        try:
            work()
        except RequestError as e:
            os.write(result, str(e).encode())
        status = 0
    finally:
        os._exit(status)


def _read(descriptor: int) -> str:
    """Return all that a pipe holds, as text."""
    parts = []
    while part := os.read(descriptor, 4096):
        parts.append(part)
    return b"".join(parts).decode()
