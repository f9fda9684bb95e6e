"""Watch the ranks of this host until their watchdogs do, and name one that is stopped while MPI starts.

    a rank begins           it starts this file as a process: MPI's start does not let go of Python's lock
    that process looks      at all ranks that were started beside its own, in /proc
    one is stopped          while all others have come to MPI's start: after the limit it is named, and the job ends
    all have come           and MPI does not start, since another host is cut off: the job ends after 20 times the limit
    the rank's watchdog     has begun: the process ends

A rank of this host that runs is waited for, however long it takes: it may read Python's modules from a slow disk.
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
_WHOLE_LIMITS = 20  # for other hosts to come, of which nothing is known
_LAST_WORDS_S = 1.0  # all ranks print before mpirun ends them
_STARTER_S = {"prterun": 10.0, "orterun": 10.0, "mpirun": 10.0, "prted": 13.0, "orted": 13.0}


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
    """Return when stdin ends, or once it was said who is missing and the rank `own` killed."""
    pause_s, looked = limit_s / _LOOKS, time.monotonic()
    for_stopped_s = for_all_s = 0.0
    while not select.select([0], [], [], pause_s)[0]:
        now = time.monotonic()
        passed_s = now - looked if now - looked <= 2 * pause_s else 0.0  # else this process stood still itself
        looked = now
        stopped = awaited(own)
        for_stopped_s = for_stopped_s + passed_s if stopped else 0.0
        for_all_s = for_all_s + passed_s if stopped is not None else 0.0
        if stopped and for_stopped_s >= limit_s:
            _end(own, _named(stopped, limit_s))
            return
        if for_all_s >= _WHOLE_LIMITS * limit_s:
            _end(own, _unnamed(_WHOLE_LIMITS * limit_s))
            return


def awaited(own: int) -> dict[int, int] | None:
    """Return the stopped ranks of this host and their processes; None where that is no reason to wait yet.

    own: the process of a rank. Of several ranks all may have been stopped on purpose; and one that still runs to MPI's
    start keeps the others waiting too.
    """
    processes = _processes()
    if own not in processes:
        return None
    starter = processes[own].parent
    ranks = {pid: rank for pid, p in processes.items() if p.parent == starter and (rank := rank_of(pid)) is not None}
    stopped = {rank: pid for pid, rank in ranks.items() if processes[pid].stopped}
    watched = {p.parent for pid, p in processes.items() if p.parent in ranks and _is_watch(pid)}
    coming = [pid for pid in ranks if not processes[pid].stopped and pid not in watched]
    return None if coming or len(stopped) == len(ranks) > 1 else dict(sorted(stopped.items()))


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
                state, parent, *_ = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                found[int(entry.name)] = _Process(int(parent), state == "T")
    return found


def _is_watch(pid: int) -> bool:
    """Return whether a process is one that this file starts."""
    try:
        return __file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _named(stopped: dict[int, int], limit_s: float) -> str:
    """Return what is to be said of ranks that are stopped."""
    names = ", ".join(f"rank {rank} (host {os.uname().nodename})" for rank in stopped)
    have, pids = "has" if len(stopped) == 1 else "have", " ".join(map(str, stopped.values()))
    what = f"{names} {have} not come to MPI's start for {limit_s:g} s"
    return f"{what}: stopped by a signal; let go on with `kill -CONT {pids}`, or start the server again"


def _unnamed(limit_s: float) -> str:
    """Return what is to be said where all ranks of this host have come."""
    return (
        f"MPI has not started for {limit_s:g} s, though all ranks of host {os.uname().nodename} have come: look whether"
        " other hosts and the network between them are up; raise exchange.timeout_s where it may take longer"
    )


def _end(own: int, text: str) -> None:
    """Print why and kill the rank `own`, whereupon mpirun ends all others."""
    print(f"\nollampi: rank {rank_of(own)}: {text}; ending the job", file=sys.stderr, flush=True)
    starter = _processes()[own].parent
    name = _name(starter)
    time.sleep(_LAST_WORDS_S)
    if os.getppid() == own:
        os.kill(own, signal.SIGKILL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)  # mpirun reads what its ranks print to the end
    _outlive(starter, name)


def _outlive(starter: int, name: str) -> None:
    """Kill Open MPI's starter of ranks where it does not end: it waits for ever for a host that is cut off.

    As in launcher.lost, which this process cannot import.
    """
    end = time.monotonic() + _STARTER_S.get(name, 0.0)
    while name in _STARTER_S and _name(starter) == name:
        if time.monotonic() > end:
            os.kill(starter, signal.SIGKILL)
            return
        time.sleep(_LAST_WORDS_S)


def _name(pid: int) -> str:
    """Return the name of a process, "" where there is none."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]))
