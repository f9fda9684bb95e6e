"""Run pytest on N ranks: `python tests/mpirun.py N [pytest arguments]`; the exit status is that of the ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from ollampi.launcher.mpi import command, detect, environment, link_library


def main() -> int:
    """Return the exit status of mpirun, at most 10 minutes later."""
    size, arguments = int(sys.argv[1]), sys.argv[2:]
    mpi = detect(None)
    link_library(mpi, os.environ)
    program = [sys.executable, "-m", "mpi4py", "-m", "pytest", "--only-mpi", "-p", "no:cacheprovider", *arguments]
    added = {**environment(mpi, os.geteuid() == 0, os.environ), "OLLAMPI_TEST_SIZE": str(size)}
    return subprocess.run(command(mpi, size, program), env={**os.environ, **added}, timeout=600).returncode


if __name__ == "__main__":
    sys.exit(main())
