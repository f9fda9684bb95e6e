"""Run mpirun beside this process, so that an end which the user asked for is no failure."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType

from ollampi.mpiruntime.lifetime import die_with

# Ctrl-C, a closed terminal and `kill` all mean one thing; USR1 drains.
_SENT_ON = {
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
}
_ENDED_BY_SIGNAL = 1  # what Open MPI's mpirun reports after it, however well every rank ended


def supervise(line: Sequence[str], environ: Mapping[str, str]) -> int:
    """Return the exit status of mpirun, or 0 where it was told to end and did; the kernel kills it with this process.

    It has a process group of its own, so that Ctrl-C reaches it once, from here.
    """
    parent, told_to_end = os.getpid(), False

    def send_on(number: int, _frame: FrameType | None) -> None:
        nonlocal told_to_end
        told_to_end |= _SENT_ON[signal.Signals(number)] is signal.SIGTERM
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
    if told_to_end and status == _ENDED_BY_SIGNAL:
        return 0
    return status if status >= 0 else 128 - status
