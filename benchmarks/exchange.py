"""Print how long an all-reduce takes through shared memory and through MPI, measured in turns.

    python benchmarks/exchange.py [--sizes 2 4]

The best of several rounds on the slowest rank, in microseconds, the call from Python included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from ollampi.launcher.assemble import communicator
from ollampi.mpiruntime.exchange_plan import Choice
from ollampi.mpiruntime.measuring import measure
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.shared_memory import share_memory
from ollampi.mpiruntime.world import crowded, survey

ROOT = Path(__file__).resolve().parent.parent
SIZES = 8 << 10, 32 << 10, 4 << 20  # bytes
SHARED, MPI = Choice("shared memory", 0), Choice("MPI", 0)


def run_rank() -> None:
    """Print one line for each size on rank 0."""
    comm = communicator()
    facts = survey(comm)
    torch.set_num_threads(facts[comm.rank].threads)
    shared = share_memory(comm, crowded(facts, comm.rank, torch.get_num_threads()))
    found = measure({SHARED: shared.all_reduce, MPI: comm.all_reduce}, comm, SIZES)
    for size in SIZES if comm.rank == 0 else ():
        mine, other = found[SHARED][size] * 1e6, found[MPI][size] * 1e6
        print(
            f"{comm.size} ranks, {size // 1024:5d} KiB: shared memory {mine:8.1f} us, MPI {other:8.1f} us,"
            f" {other / mine:.1f} times",
            flush=True,
        )
    if isinstance(comm, Mpi):
        comm.finish()


def main() -> None:
    """Measure every world size in a job of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rank", action="store_true", help="run as one rank; used by the above")
    args = parser.parse_args()
    if args.rank:
        run_rank()
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from support.servers import mpirun

    for size in args.sizes:
        line, env = mpirun(size, [sys.executable, __file__, "--rank"])
        subprocess.run(line, env=env, check=True)


if __name__ == "__main__":
    main()
