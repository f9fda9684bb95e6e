"""Run mpirun beside this process, so that an end which the user asked for is no failure."""

import os
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from types import FrameType

from ollampi.launcher.leftovers import remove_session
from ollampi.mpiruntime.lifetime import die_with

TERMINAL = "OLLAMPI_TERMINAL"  # "1" tells the ranks that mpirun, which they write to, writes to a terminal
SENT_ON = {  # Ctrl-C, a closed terminal and `kill` all mean one thing; USR1 drains
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
}
# What Open MPI's mpirun reports after it, however well every rank ended; where it had not begun to listen; and srun,
# which kills a step that it has sent another signal before.
_ENDED = (1, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
_DRAINED_EARLY = 128 + signal.SIGUSR1  # ranks that had not begun to listen to signals


def supervise(line: Sequence[str], environ: Mapping[str, str]) -> int:
    """Return the exit status of mpirun, or 0 where it was told to end and did; the kernel kills it with this process.

    It has a process group of its own, so that Ctrl-C reaches it once, from here.
    """
    parent, sent = os.getpid(), set[int]()

    def send_on(number: int, _frame: FrameType | None) -> None:
        sent.add(SENT_ON[signal.Signals(number)])
        child.send_signal(SENT_ON[signal.Signals(number)])

    child = subprocess.Popen(
        line,
        env=environ,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=becoming_mpirun(parent, environ),
    )
    for number in SENT_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, send_on)
    status = child.wait()
    remove_session(child.pid, environ)
    return told(status, sent)


def becoming_mpirun(parent: int, environ: Mapping[str, str]) -> Callable[[], None]:
    """Return what a child of `parent` does before it becomes an mpirun with an environment.

    The kernel kills it with its parent; and the folder of another mpirun goes, which was killed and had the same pid:
    Open MPI ends with "The PMIx server's listener thread failed to start" where it finds one.
    """

    def begin() -> None:
        """Do it."""
        die_with(parent)
        remove_session(os.getpid(), environ)

    return begin


def told(status: int, sent: Collection[int]) -> int:
    """Return the exit status to be told of an mpirun that ended with `status`, negative for a signal.

    sent: the signals that it was sent. An end that the user asked for is no failure.
    """
    status = status if status >= 0 else 128 - status
    if (signal.SIGTERM in sent and status in _ENDED) or (signal.SIGUSR1 in sent and status == _DRAINED_EARLY):
        return 0
    return status
