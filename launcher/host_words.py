"""Name hosts to each MPI's mpirun."""

from __future__ import annotations

from collections.abc import Sequence

from ollampi.launcher.hosts import Form, Hosts


def open_mpi_hosts(hosts: Hosts | None) -> list[str]:
    """Return the options that name hosts to Open MPI, which cannot read `node:2` in a file."""
    if hosts is None:
        return []
    if hosts.file and hosts.form is not Form.HYDRA:
        return ["--hostfile", hosts.file]
    return ["--host", _counted(hosts)]


def mpich_hosts(hosts: Hosts | None) -> list[str]:
    """Return the options that name hosts to MPICH, which cannot read `node slots=2` in a file."""
    if hosts is None:
        return []
    if hosts.file and hosts.form is not Form.OPEN_MPI:
        return ["-f", hosts.file]
    return ["-hosts", _counted(hosts)]


def intel_words(ranks: int, program: Sequence[str], hosts: Hosts | None) -> list[str]:
    """Return what stands behind Intel's mpirun: where hosts take different numbers of ranks, a part for each."""
    whole = ["-n", str(ranks), *program]
    if hosts is None:
        return whole
    if hosts.file and hosts.form is Form.HYDRA:
        return ["-machinefile", hosts.file, *whole]
    if hosts.file and hosts.slots is None:
        return ["-f", hosts.file, *whole]
    names = ",".join(host.name for host in hosts.each)
    counts = {host.slots for host in hosts.each}
    if len(counts) == 1:
        count = hosts.each[0].slots
        return ["-hosts", names, *([] if count is None else ["-ppn", str(count)]), *whole]
    parts: list[str] = []
    for host in hosts.each:
        taken = min(ranks, host.slots or 1)
        ranks -= taken
        parts += [*([":"] if parts else []), "-host", host.name, "-n", str(taken), *program] if taken else []
    return parts


def _counted(hosts: Hosts) -> str:
    """Return hosts as a list for --host or -hosts."""
    return ",".join(host.name if host.slots is None else f"{host.name}:{host.slots}" for host in hosts.each)
