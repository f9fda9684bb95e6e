"""Say in the words of each MPI to which cores the ranks are bound."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from ollampi.launcher.hosts import Hosts, slurm_hosts
from ollampi.mpiruntime.cores import usable_cores
from ollampi.mpiruntime.errors import ConfigError


class Bound(Enum):
    """Say what a rank is bound to."""

    CORE = "core"
    NUMA = "numa"
    NONE = "none"


@dataclass(frozen=True)
class Binding:
    """What each rank is bound to; cores: how many of its own it has, where to cores."""

    bound: Bound
    cores: int = 1


def chosen_binding(
    bound: str | None, ranks: int, hosts: Hosts | None, environ: Mapping[str, str], cores: int | None = None
) -> Binding | None:
    """Return the binding of an option's value, None for none given.

    cores: how many this host has, by its affinity unless given; the other hosts are taken to be alike. Raise
    ConfigError where they are too few for each rank of a host to have its own.
    """
    if bound is None:
        return None
    if bound != Bound.CORE.value:
        return Binding(Bound(bound))
    usable = usable_cores(environ, len(os.sched_getaffinity(0)) if cores is None else cores)
    local = most_on_a_host(ranks, hosts or slurm_hosts(environ))
    if local > usable:
        raise ConfigError(
            f"--bind core cannot give {local} ranks of a host cores of their own: there are {usable}; use --bind none,"
            f" or at most {usable} ranks on each host"
        )
    return Binding(Bound.CORE, usable // max(1, local))


def most_on_a_host(ranks: int, hosts: Hosts | None) -> int:
    """Return how many of the ranks the fullest host gets, hosts being filled in order as far as slots are known."""
    if hosts is None:
        return ranks
    if hosts.slots is None:
        return -(-ranks // len(hosts.each))
    return min(ranks, max(host.slots or 0 for host in hosts.each))


def open_mpi_words(binding: Binding | None, is_old: bool) -> list[str]:
    """Return the options of Open MPI's mpirun, which let ranks outnumber slots; is_old: before version 5.

    Without a binding it would pin the ranks of a small world to single cores.
    """
    mapped = {
        None: "",
        Bound.NONE: "",
        Bound.CORE: f"slot:PE={binding.cores if binding else 1}",
        Bound.NUMA: "numa",
    }[binding.bound if binding else None]
    to = {Bound.CORE: "core", Bound.NUMA: "numa:overload-allowed"}.get(binding.bound if binding else Bound.NONE, "none")
    if is_old:
        return ["--oversubscribe", *(["--map-by", mapped] if mapped else []), "--bind-to", to]
    return ["--map-by", f"{mapped}:OVERSUBSCRIBE", "--bind-to", to]


def hydra_words(binding: Binding | None) -> list[str]:
    """Return the options of MPICH's mpirun, which binds nothing unless told."""
    if binding is None:
        return []
    return ["-bind-to", f"core:{binding.cores}" if binding.bound is Bound.CORE else binding.bound.value]


def intel_variables(binding: Binding | None) -> dict[str, str]:
    """Return the variables of Intel MPI, which by itself binds each rank to its share of the cores."""
    if binding is None:
        return {}
    if binding.bound is Bound.NONE:
        return {"I_MPI_PIN": "off"}
    return {"I_MPI_PIN": "on", "I_MPI_PIN_DOMAIN": "numa" if binding.bound is Bound.NUMA else "auto:compact"}
