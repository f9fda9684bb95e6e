"""End a job of which a rank is missing, whatever its other ranks are doing."""

from __future__ import annotations

import faulthandler
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.log_files import in_files
from ollampi.mpiruntime.mpi import Mpi

_log = logging.getLogger(__name__)

_LAST_WORDS_S = 1.0  # until MPI kills everybody: all ranks print, and clients get an answer
_ABORT_S = 5.0  # how long MPI may take for that
# Of Open MPI; Slurm's daemons end their jobs themselves. The second ones are those of other hosts: where they end
# first, mpirun may report that all went well.
_STARTERS, _REMOTE_STARTERS = ("prterun", "orterun", "mpirun"), ("prted", "orted")
_STARTER_S, _REMOTE_STARTER_S = 11.0, 14.0
_KILL = 'sleep "$2"; [ "$(cat /proc/$0/comm)" = "$1" ] && kill -KILL $0'


class Lost:
    """What a rank does where another one is missing; called by any thread.

    next_step: what becomes of the server, for clients; farewell: called first, with what they are to read; what it
    starts has a second.
    """

    def __init__(self, comm: Communicator, next_step: str = "it must be started again") -> None:
        self._comm = comm
        self._next_step = next_step
        self.farewell: Callable[[str], None] = lambda reason: None

    def __call__(self, text: str) -> None:
        """Print why, and end all ranks; does not return.

        The process ends also where MPI hangs, or the main thread does not let go of Python's lock.
        """
        print(f"\nollampi: rank {self._comm.rank}: {text}; ending the job", file=sys.stderr, flush=True)
        if in_files():
            _log.error("%s; ending the job", text)
        faulthandler.dump_traceback_later(_LAST_WORDS_S + _ABORT_S, exit=True, file=os.open(os.devnull, os.O_WRONLY))
        _outlive(os.getppid())
        self.farewell(f"the server is ending, since {text.partition(': ')[0]}; {self._next_step}")
        time.sleep(_LAST_WORDS_S)
        if isinstance(self._comm, Mpi):
            self._comm.abort(1)
        os._exit(1)


def _outlive(starter: int) -> None:
    """Have what started this rank killed later: Open MPI's waits for ever for a host that is cut off."""
    with suppress(OSError):
        name = Path(f"/proc/{starter}/comm").read_text(errors="replace").strip()
        if name in (*_STARTERS, *_REMOTE_STARTERS):
            after_s = _STARTER_S if name in _STARTERS else _REMOTE_STARTER_S
            line = ["sh", "-c", _KILL, str(starter), name, str(after_s)]
            subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
