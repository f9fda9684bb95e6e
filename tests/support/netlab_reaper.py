"""Kill what is left of a laboratory when the process that made it ends, however it ends: `netlab_reaper.py FOLDER`.

Its stdin names network namespaces, one in a line, and ends with that process. What runs in one of them is killed, which
takes the namespace with it; then the folder goes.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path


def clear(space: str, between: Callable[[], object] = lambda: None) -> None:
    """Kill the processes in a network namespace until there is none; `between` is called after each turn."""
    while found := list(processes(space)):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        between()
        time.sleep(0.01)


def processes(space: str) -> Iterator[int]:
    """Yield the processes that live in a network namespace."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has just ended
            if entry.name.isdigit() and os.readlink(entry / "ns" / "net") == space:
                yield int(entry.name)


def main() -> None:
    """Wait for the end of stdin, then clear up."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for space in [line.strip() for line in sys.stdin]:
        clear(space)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
