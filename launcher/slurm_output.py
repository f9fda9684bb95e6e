"""See what the ranks print while it goes on to where it went: readiness, and why a start failed."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

READY, PORT_TAKEN = b"serving at ", b"cannot listen on "  # of launcher.banner and launcher.assemble
# what a rank says of itself before mpirun ends the others, rather than of something that a user can mend
_ABORTED = (
    b"srun: Job step aborted"  # it then waits for a node that is gone as long as Slurm lets a step end, or longer
)
OWN = b"ollampi job: "  # begins what this process says itself
_FAILED = re.compile(rb"failed; ending all ranks|; ending the job|Traceback")
_MARK = b"\0settled\0"
_KEPT_LINES, _KEPT_BYTES = 12, 400
_STEP_S = 3.0  # which srun has to end a step after that


def say(text: str) -> None:
    """Print a message to the job's output."""
    print(f"{OWN.decode()}{text}", flush=True)


class Output:
    """Stands between this process' stdout and stderr, which its children have too, and where they lead.

    ready: called by a thread of its own when the ranks say that they serve.
    """

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._out = os.dup(1)
        read, write = os.pipe()
        for number in (1, 2):
            os.dup2(write, number)
        os.close(write)
        self._settled = threading.Event()
        self._forget()
        self._thread = threading.Thread(target=self._copy, args=(read,), name="output", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Forget what was printed before."""
        self.settle()
        self._forget()

    def settle(self) -> None:
        """Return once all that was printed before has been seen."""
        self._settled.clear()
        os.write(1, _MARK)
        self._settled.wait(_STEP_S)

    def _forget(self) -> None:
        self._lines: list[bytes] = []
        self.is_ready = self.port_taken = self.failed = False

    def reasons(self) -> str:
        """Return what our own messages were since `begin`, else the first lines that were printed."""
        lines = list(self._lines)
        own = [line for line in lines if line.startswith((b"ollampi: ", b"Error: "))]
        return "\n".join(line.decode(errors="replace").rstrip() for line in own[:_KEPT_LINES] or lines)

    def close(self) -> None:
        """Copy what there is and give stdout and stderr back; children that still print do it in vain."""
        for number in (1, 2):
            os.dup2(self._out, number)
        self._thread.join(1.0)

    def _copy(self, read: int) -> None:
        """Copy until nobody can write any more."""
        rest = b""
        while data := os.read(read, 65536):
            has_mark, data = _MARK in data, data.replace(_MARK, b"")
            with suppress(OSError):  # a full disk must not stop the ranks
                os.write(self._out, data)
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-_KEPT_BYTES:]
            for line in lines:
                self._see(line)
            if has_mark:
                self._settled.set()

    def _see(self, line: bytes) -> None:
        """Note what a line of the ranks says."""
        if line.startswith(OWN):
            return
        if len(self._lines) < _KEPT_LINES or line.startswith(b"ollampi: "):
            self._lines = [*self._lines, line[:_KEPT_BYTES]][-4 * _KEPT_LINES :] if line.strip() else self._lines
        self.port_taken |= PORT_TAKEN in line
        self.failed |= _FAILED.search(line) is not None
        if line.startswith(_ABORTED):
            threading.Timer(_STEP_S, _kill, [_starters()]).start()
        if line.startswith(READY) and not self.is_ready:
            self.is_ready = True
            self._ready()


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
