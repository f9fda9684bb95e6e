"""Start the ranks again where they end, inside one job, until they are told to end or keep failing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from ollampi.launcher.slurm_output import Output, say
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.lifetime import die_with

Build = Callable[[int], tuple[Sequence[str], Mapping[str, str]]]

_SENT_ON = {
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
}
_EARLY, _PORTS = 3, 10  # starts without a ready state, and with a port that somebody else took, before it gives up
_PAUSE_S = 1.0


class Told:
    """The signals that this process got, which go on to what starts the ranks; it ends then at the next chance."""

    def __init__(self) -> None:
        self.sent: set[signal.Signals] = set()
        self._child: subprocess.Popen[bytes] | None = None
        for number in _SENT_ON:
            signal.signal(number, self._take)

    def run(self, line: Sequence[str], environ: Mapping[str, str]) -> int:
        """Return the exit status of what starts the ranks; the kernel kills it with this process."""
        parent = os.getpid()
        # a group of its own, so that a signal to this process' group reaches it once
        with subprocess.Popen(
            line, env=environ, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=lambda: die_with(parent)
        ) as child:
            self._child = child
            for number in self.sent:  # which came while the process was made
                child.send_signal(number)
            status = child.wait()
        self._child = None
        return status if status >= 0 else 128 - status

    def _take(self, number: int, _frame: FrameType | None) -> None:
        wanted = _SENT_ON[signal.Signals(number)]
        self.sent.add(wanted)
        if self._child is not None:
            self._child.send_signal(wanted)


def keep(build: Build, output: Output, told: Told, all_answer: Callable[[], bool]) -> int:
    """Return 0 once the ranks were told to end and did, or ended by themselves; else their exit status.

    build(attempt): returns line and environment of a start, or raises OllampiError; all_answer: whether the nodes of
    the last start are still there, asked where a start ended with status 0, which Open MPI also reports for a node that
    died. Raise ConfigError, with what the first start said, where several starts in a row were never ready.
    """
    early = ports = attempt = 0
    first = ""
    while not told.sent:
        line, environ = build(attempt)
        if told.sent:
            break
        output.begin()
        status = told.run(line, environ)
        output.settle()
        attempt += 1
        if told.sent:
            return (
                0 if output.is_ready or signal.SIGTERM in told.sent or status in (0, 128 + signal.SIGUSR1) else status
            )
        if status == 0 and output.is_ready and all_answer():
            return 0
        if output.port_taken and ports < _PORTS:
            ports += 1
            continue
        early, first = (0, "") if output.is_ready else (early + 1, first or output.reasons())
        if not output.is_ready and status == 1 and not output.failed:
            raise ConfigError("the ranks refused to start, for the reason above")
        if early >= _EARLY:
            raise ConfigError(
                f"the ranks ended {early} times before they served, at last with status {status}{_told(first)}"
            )
        say(f"the ranks ended with status {status}; starting them again")
        time.sleep(0 if output.is_ready else _PAUSE_S * early)
    return 0


def _told(first: str) -> str:
    """Return what the first start said, after a colon."""
    return f". The first time they said:\n{first}" if first else ""
