"""Run mpirun beside this process, so that an end which the user asked for is no failure."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType

from ollampi.mpiruntime.lifetime import die_with

TERMINAL = "OLLAMPI_TERMINAL"  # "1" tells the ranks that mpirun, which they write to, writes to a terminal
# Ctrl-C, a closed terminal and `kill` all mean one thing; USR1 drains.
_SENT_ON = {
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
}
_ENDED_BY_SIGNAL = 1  # what Open MPI's mpirun reports after it, however well every rank ended
_DRAINED_EARLY = 128 + signal.SIGUSR1  # ranks that had not begun to listen to signals


def supervise(line: Sequence[str], environ: Mapping[str, str]) -> int:
    """Return the exit status of mpirun, or 0 where it was told to end and did; the kernel kills it with this process.

    It has a process group of its own, so that Ctrl-C reaches it once, from here.
    """
    parent, sent = os.getpid(), set[int]()

    def send_on(number: int, _frame: FrameType | None) -> None:
        sent.add(_SENT_ON[signal.Signals(number)])
        child.send_signal(_SENT_ON[signal.Signals(number)])

    child = subprocess.Popen(
        line,
        env=environ,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=lambda: die_with(parent),
    )
    for number in _SENT_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, send_on)
    status = child.wait()
    status = status if status >= 0 else 128 - status
    if (signal.SIGTERM in sent and status == _ENDED_BY_SIGNAL) or (signal.SIGUSR1 in sent and status == _DRAINED_EARLY):
        return 0
    return status
