"""Try a way to start ranks in a Slurm job before a server needs it: a program tells the size of its world."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from ollampi.launcher import slurm_site
from ollampi.launcher.slurm_nodes import Node
from ollampi.launcher.slurm_site import VARIABLE, Site, Way
from ollampi.mpiruntime.errors import WorldError

_TRIAL = "from mpi4py import MPI; c = MPI.COMM_WORLD; c.Barrier(); print('world', c.size, flush=True)"
_TRIAL_S, _GRACE_S = 60.0, 5.0


def ways_that_work(
    site: Site,
    nodes: Sequence[Node],
    cpus_per_task: int | None,
    environment: Callable[[Way], Mapping[str, str]],
    say: Callable[[str], None],
) -> list[Way]:
    """Return the ways of a site from the first on that makes one world of the tasks of `nodes`.

    cpus_per_task: as slurm_site.line takes it; environment: of a start with a way; say: is told why another way is
    tried. mpirun is tried only behind one that failed. Raise WorldError where none makes one.
    """
    ways, ranks = list(site.ways), sum(node.tasks for node in nodes)
    while ways[0] is not Way.MPIRUN or (len(ways) == 1 and len(site.ways) > 1):
        line = slurm_site.line(site, ways[0], nodes, trial(), cpus_per_task)
        try:
            check_trial(ways[0], *_tried(line, environment(ways[0])), ranks)
            break
        except WorldError as e:
            if len(ways) == 1:
                raise
            say(f"{e.args[0].partition(';')[0]}; trying {ways[1].program}")
            ways.pop(0)
    return ways


def trial(interpreter: str = sys.executable) -> list[str]:
    """Return the program that every rank of a trial runs: it says how large its world is."""
    return [interpreter, "-c", _TRIAL]


def check_trial(way: Way, status: int | None, text: str, ranks: int) -> None:
    """Raise WorldError where a trial of `ranks` ranks did not make one world of them.

    status: of what started them, None where it took too long; text: all that was printed.
    """
    sizes = [int(size) for size in re.findall(r"^world (\d+)$", text, re.MULTILINE)]
    if status == 0 and sizes == [ranks] * ranks:
        return
    if sizes and set(sizes) == {1} and ranks > 1:
        what = f"started {len(sizes)} worlds of one rank each: it does not fit the MPI library"
    elif status is None:
        what = "did not end in time"
    else:
        words = [each.strip() for each in text.splitlines() if each.strip() and not each.startswith("world ")]
        what = f"ended with status {status}" + (f": {words[0][:200]}" if words else "")
    raise WorldError(
        f"a trial of {ranks} ranks with {way.program} {what}; choose another way with {VARIABLE}=pmix, pmi2 or mpirun,"
        " or an MPI library that fits"
    )


def _tried(line: Sequence[str], environ: Mapping[str, str]) -> tuple[int | None, str]:
    """Return how a trial ended, None where it took too long, and what it printed."""
    with subprocess.Popen(
        line,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    ) as process:
        try:
            told, _ = process.communicate(timeout=_TRIAL_S)
        except subprocess.TimeoutExpired:
            process.terminate()  # srun ends its step
            try:
                return None, process.communicate(timeout=_GRACE_S)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                return None, process.communicate()[0]
    return process.returncode, told
