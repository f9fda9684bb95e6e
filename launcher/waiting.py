"""Say how the threads of a rank wait for each other, which OpenMP reads when torch loads it."""

import os
from collections.abc import Mapping, Sequence

from ollampi.launcher.given import chosen
from ollampi.mpiruntime.errors import ConfigError

_LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def local_size(environ: Mapping[str, str]) -> int:
    """Return how many ranks mpirun says it started on this host, 1 without it."""
    return next((int(environ[name]) for name in _LOCAL_SIZES if environ.get(name, "").isdigit()), 1)


def waiting(overrides: Sequence[str], ranks: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that has threads sleep while they wait, where those of `ranks` ranks outnumber the cores.

    Spinning threads would keep the others from the cores. Empty where the user chose, or the threads fit.
    """
    if any(name in environ for name in _CHOSEN_BY_USER):
        return {}
    try:
        threads = chosen(overrides, environ).get("threads")
    except ConfigError:  # which the ranks will say
        return {}
    crowded = isinstance(threads, int) and threads > 1 and ranks * threads > len(os.sched_getaffinity(0))
    return {"OMP_WAIT_POLICY": "passive"} if crowded else {}
