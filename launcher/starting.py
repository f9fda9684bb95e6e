"""Watch the ranks of this host until their watchdogs do, and name one that is stopped while MPI starts.

    a rank begins           it starts this file as a process: MPI's start does not let go of Python's lock
    that process looks      at all ranks that were started beside its own, in /proc
    one is stopped          while all others have come to MPI's start: after the limit it is named, and the job ends
    the rank's watchdog     has begun: the process ends

A rank that runs is waited for, however long it takes: it may read Python's modules from a slow disk.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_LOOKS = 10  # within the limit
_LAST_WORDS_S = 1.0  # all ranks print before mpirun ends them


class Starting:
    """The watch over the start of this rank; limit_s: how long it waits for a rank that is stopped."""

    def __init__(self, limit_s: float) -> None:
        # neither the user's settings of Python nor installed packages: it must start at once
        line = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(limit_s)]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def over(self) -> None:
        """End the watch; what a second call does is nothing."""
        self._process.communicate()


@dataclass(frozen=True)
class _Process:
    """What /proc tells of a process."""

    parent: int
    stopped: bool


def watch(own: int, limit_s: float) -> None:
    """Return when stdin ends, or once a stopped rank was named and the rank `own` killed."""
    pause_s, waited_s, looked = limit_s / _LOOKS, 0.0, time.monotonic()
    while not select.select([0], [], [], pause_s)[0]:
        now = time.monotonic()
        stopped = awaited(own)
        if not stopped:
            waited_s = 0.0
        elif now - looked <= 2 * pause_s:  # else this process stood still itself, maybe with all others
            waited_s += now - looked
        looked = now
        if waited_s >= limit_s:
            _end(own, stopped, limit_s)
            return


def awaited(own: int) -> dict[int, int]:
    """Return the stopped ranks of this host and their processes, none where nobody waits for them alone.

    own: the process of a rank. Of several ranks all may have been stopped on purpose; and one that still runs to MPI's
    start keeps the others waiting too.
    """
    processes = _processes()
    if own not in processes:
        return {}
    starter = processes[own].parent
    ranks = {pid: rank for pid, p in processes.items() if p.parent == starter and (rank := rank_of(pid)) is not None}
    stopped = {rank: pid for pid, rank in ranks.items() if processes[pid].stopped}
    watched = {p.parent for pid, p in processes.items() if p.parent in ranks and _is_watch(pid)}
    coming = [pid for pid in ranks if not processes[pid].stopped and pid not in watched]
    return {} if coming or len(stopped) == len(ranks) > 1 else dict(sorted(stopped.items()))


def rank_of(pid: int) -> int | None:
    """Return the rank that a launcher gave a process, None for any other one."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    environ = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    given = [environ[name] for name in _RANK_VARIABLES if environ.get(name, "").isdigit()]
    return int(given[0]) if given else None


def _processes() -> dict[int, _Process]:
    """Return all processes of this host that can be seen."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has just ended
                state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = _Process(int(parent), state == "T")
    return found


def _is_watch(pid: int) -> bool:
    """Return whether a process is one that this file starts."""
    try:
        return __file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _end(own: int, stopped: dict[int, int], limit_s: float) -> None:
    """Say who is missing and kill the rank `own`, whereupon mpirun ends all others."""
    names = ", ".join(f"rank {rank} (host {os.uname().nodename})" for rank in stopped)
    have, pids = "has" if len(stopped) == 1 else "have", " ".join(map(str, stopped.values()))
    what = f"{names} {have} not come to MPI's start for {limit_s:g} s"
    remedy = f"stopped by a signal; let go on with `kill -CONT {pids}`, or start the server again"
    print(f"\nollampi: rank {rank_of(own)}: {what}: {remedy}; ending the job", file=sys.stderr, flush=True)
    time.sleep(_LAST_WORDS_S)
    if os.getppid() == own:
        os.kill(own, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]))
