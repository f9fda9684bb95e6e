"""Play rank 0 of a job whose port another process keeps."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ollampi.launcher import keeper_link

SOURCE = Path(keeper_link.__file__).parents[2]
_RANK = """
import os, sys, time
from pathlib import Path
from ollampi.launcher.keeper_link import KeeperLink
link = KeeperLink("unix:@ollampi-nobody-is-here", os.environ)
for op in sys.argv[3:]:
    link.tell(op)
    mark = Path(sys.argv[2])
    while op == "ready" and not mark.exists():  # until the keeper has noticed
        time.sleep(0.01)
    mark.unlink(missing_ok=True)
print("ollampi: rank 0 was here", file=sys.stderr)
link.close()
sys.exit(int(sys.argv[1]))
"""


def rank_0(mark: Path, status: int, *told: str) -> tuple[list[str], Mapping[str, str]]:
    """Return the line and the environment of a job that tells the keeper this much and ends with `status`.

    mark: the file that the test makes when the keeper knows that the job is ready.
    """
    return [sys.executable, "-c", _RANK, str(status), str(mark), *told], {**os.environ, "PYTHONPATH": str(SOURCE)}


def failing(text: str, status: int) -> tuple[list[str], Mapping[str, str]]:
    """Return the line and the environment of a job that prints a line and ends before it has begun."""
    return ["sh", "-c", f'echo "starting"; echo "noise" >&2; echo "{text}" >&2; exit {status}'], dict(os.environ)


def children(pid: int) -> list[int]:
    """Return the processes that the main thread of a process started itself."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def command_line(pid: int) -> bytes:
    """Return the arguments of a process, each with a zero behind it."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()
