"""Have srun end soon where a node of its step is gone: what the ranks print says so while it goes where it went."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_ABORTED = (
    b"srun: Job step aborted"  # it then waits for a node that is gone as long as Slurm lets a step end, or longer
)
_KEPT_BYTES = 400
_STEP_S = 3.0  # which srun has to end a step after that


class Output:
    """Stands between this process' stdout and stderr, which its children have too, and where they lead."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        read, write = os.pipe()
        for number in (1, 2):
            os.dup2(write, number)
        os.close(write)
        self._thread = threading.Thread(target=self._copy, args=(read,), name="output", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy what there is and give stdout and stderr back; children that still print do it in vain."""
        for number in (1, 2):
            os.dup2(self._out, number)
        self._thread.join(1.0)

    def _copy(self, read: int) -> None:
        """Copy until nobody can write any more."""
        rest = b""
        while data := os.read(read, 65536):
            with suppress(OSError):  # a full disk must not stop the ranks
                os.write(self._out, data)
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-_KEPT_BYTES:]
            if any(line.startswith(_ABORTED) for line in lines):
                threading.Timer(_STEP_S, _kill, [_starters()]).start()


def _starters() -> set[int]:
    """Return the children of this process that start ranks with srun."""
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):  # it has just ended
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if parent == os.getpid() and words[0].endswith(b"srun") and b"--kill-on-bad-exit=1" in words:
                found.add(int(entry.name))
    return found


def _kill(starters: Collection[int]) -> None:
    """Kill those that are still there; what they started on nodes that live has been ended."""
    for pid in _starters() & set(starters):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
