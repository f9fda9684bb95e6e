"""Run the ranks of a test over the hosts of a laboratory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from support.netlab import Lab

TESTS = Path(__file__).resolve().parent.parent
LIMIT_S = 300.0


def start_ranks(
    net: Lab, ranks: Sequence[int], program: Sequence[str], out: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start a program of this tree on ranks[i] ranks of host i; it and its ranks are killed with this thread."""
    line, env = net.mpirun(ranks, [sys.executable, *program])
    env["PYTHONPATH"] = os.pathsep.join(
        str(path) for path in (TESTS.parent / "src", TESTS, TESTS.parent / "benchmarks")
    )
    return subprocess.Popen(line, env=env, stdout=out, stderr=subprocess.STDOUT, text=True)


def run_ranks(net: Lab, ranks: Sequence[int], *words: str) -> str:
    """Return what netlab/ranks.py prints."""
    with start_ranks(net, ranks, ["-m", "mpi4py", str(TESTS / "netlab" / "ranks.py"), *words]) as process:
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, out
    return out
