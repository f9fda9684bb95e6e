"""Play rank 0 of a job whose port another process keeps."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ollampi.launcher import keeper_link

SOURCE = Path(keeper_link.__file__).parents[2]
_RANK = """
import os, sys
from ollampi.launcher.keeper_link import KeeperLink
link = KeeperLink("unix:@ollampi-nobody-is-here", os.environ)
for op in sys.argv[2:]:
    link.tell(op)
print("ollampi: rank 0 was here", file=sys.stderr)
link.close()
sys.exit(int(sys.argv[1]))
"""


def rank_0(status: int, *told: str) -> tuple[list[str], Mapping[str, str]]:
    """Return the line and the environment of a job that tells the keeper this much and ends with `status`."""
    return [sys.executable, "-c", _RANK, str(status), *told], {**os.environ, "PYTHONPATH": str(SOURCE)}


def failing(text: str, status: int) -> tuple[list[str], Mapping[str, str]]:
    """Return the line and the environment of a job that prints a line and ends before it has begun."""
    return ["sh", "-c", f'echo "starting"; echo "noise" >&2; echo "{text}" >&2; exit {status}'], dict(os.environ)
