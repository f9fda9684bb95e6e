"""Run a script again as the ranks of a job of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_ranks(ranks: int, script: str, words: Sequence[str]) -> int:
    """Return the status of a job whose ranks run a script with --rank and these words."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from support.servers import mpirun  # the ranks themselves need nothing of the tests

    line, env = mpirun(ranks, [sys.executable, script, "--rank", *words])
    return subprocess.run(line, env=env).returncode
