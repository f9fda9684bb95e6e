"""Kill what is left of a Slurm laboratory when the process that made it ends, however it ends.

    slurmlab_reaper.py FOLDER     its stdin ends with that process

All that has the laboratory's configuration in its environment is killed, which is what was started there and nothing
else; then the folder goes.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path


def clear(folder: Path, marks: Collection[str] | None = None, between: Callable[[], object] = lambda: None) -> None:
    """Kill the processes of a laboratory, or those with one of `marks`, until there is none; as processes() has them.

    `between` is called after each turn. This process is spared.
    """
    while found := list(processes(folder, marks)):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        between()
        time.sleep(0.01)


def processes(folder: Path, marks: Collection[str] | None = None) -> Iterator[int]:
    """Yield the processes of the laboratory in a folder but this one, as they were started.

    marks: what is NAME=VALUE of their environment, one of these at least; None for all.
    """
    own, wanted = mark(folder).encode(), None if marks is None else {each.encode() for each in marks}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has just ended
            other = entry.name.isdigit() and int(entry.name) != os.getpid() and running(entry)
            environ = set((entry / "environ").read_bytes().split(b"\0")) if other else set()
            if own in environ and (wanted is None or wanted & environ):
                yield int(entry.name)


def running(entry: Path) -> bool:
    """Return whether the process of a folder in /proc is no zombie."""
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"


def mark(folder: Path) -> str:
    """Return what all processes of the laboratory in a folder have in their environment."""
    return f"SLURM_CONF={folder / 'slurm.conf'}"


def main() -> None:
    """Wait for the end of stdin, then clear up."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    folder = Path(sys.argv[1])
    clear(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
