"""Read which hosts ranks shall be on: from a list, from the hostfile of any MPI, or from Slurm."""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ollampi.launcher.slurm_lists import counts_in, names_in
from ollampi.mpiruntime.errors import ConfigError, quoted

Resolve = Callable[[str], object]  # raises OSError for a name that is no host's
MOST_RANKS = 65536  # of a host, and of a job
_NAME = re.compile(r"(?:[\w.-]+@)?([A-Za-z0-9][\w.-]*)")  # no option of mpirun or ssh begins so
_SLOTS = re.compile(r"\s*\b(max[-_]slots|slots)\s*=\s*(\S+)")
_HERE = ("localhost", "127.0.0.1")
_AT_ONCE = 16  # names that are looked up at a time


class Form(Enum):
    """Say in whose words a hostfile is."""

    OPEN_MPI = "node slots=2"
    HYDRA = "node:2"
    PLAIN = "node"


@dataclass(frozen=True)
class Host:
    """One host, and how many ranks it takes, None where nobody said."""

    name: str
    slots: int | None = None


@dataclass(frozen=True)
class Hosts:
    """The hosts of a job in order, each once; file: where they are from, "" for a list; form: of that file."""

    each: tuple[Host, ...]
    file: str = ""
    form: Form = Form.PLAIN

    @property
    def slots(self) -> int | None:
        """Return how many ranks all hosts take, None where that is not said for each."""
        counts = [host.slots for host in self.each if host.slots is not None]
        return sum(counts) if len(counts) == len(self.each) else None

    @property
    def told(self) -> str:
        """Return where they are from, for people."""
        return self.file or "--host"

    @property
    def here(self) -> bool:
        """Return whether all ranks will be on this host."""
        return all(_plain(host.name) in (*_HERE, socket.gethostname()) for host in self.each)


def listed(text: str) -> Hosts:
    """Return the hosts of a list such as "a:2,b:2" or "a,b"; raise ConfigError."""
    found = [_host(word.strip(), f"--host {text}") for word in text.split(",")]
    return Hosts(_merged(found))


def from_file(path: str) -> Hosts:
    """Return the hosts of a hostfile, in the form of any MPI; raise ConfigError with the line that is wrong."""
    try:
        lines = Path(file := os.path.expanduser(path)).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"--hostfile names {path}, which cannot be read: {why}; give a file of hosts") from error
    forms, found = set[Form](), []
    for number, line in enumerate(lines, 1):
        if words := line.partition("#")[0].strip():
            form, host = _of_line(words, f"{path}, line {number}")
            forms |= {form}
            found.append(host)
    if not found:
        raise ConfigError(f"--hostfile names {path}, which has no hosts: write a line for each, such as {_examples()}")
    if {Form.OPEN_MPI, Form.HYDRA} <= forms:
        raise ConfigError(f"{path} has lines such as {_examples()}: write all in one of these forms")
    return Hosts(_merged(found), file, next(iter(forms - {Form.PLAIN}), Form.PLAIN))


def chosen_hosts(listing: str | None, hostfile: str | None) -> Hosts | None:
    """Return the hosts that the options --host and --hostfile name, None for neither; raise ConfigError."""
    if listing is not None and hostfile is not None:
        raise ConfigError(f"--host {listing} and --hostfile {hostfile} both name hosts: give one of them")
    if listing is not None:
        return listed(listing)
    return None if hostfile is None else from_file(hostfile)


def check_hosts(hosts: Hosts, resolve: Resolve | None = None) -> None:
    """Raise ConfigError where a name is no host's; resolve: this system's unless given."""
    names = [_plain(host.name) for host in hosts.each]
    with ThreadPoolExecutor(min(_AT_ONCE, len(names))) as pool:
        known = list(pool.map(lambda name: _is_host(name, resolve or _resolve), names))
    unknown = [name for name, is_known in zip(names, known, strict=True) if not is_known]
    if unknown:
        hint = "a name must be in DNS or /etc/hosts; else give its address"
        what = "is no host" if len(unknown) == 1 else "are no hosts"
        raise ConfigError(f"{hosts.told} names {', '.join(unknown)}, which {what} that can be found: {hint}")


def slurm_hosts(environ: Mapping[str, str]) -> Hosts | None:
    """Return the nodes of the Slurm allocation that this process is in with their tasks, None outside of one.

    Raise ConfigError where Slurm's variables cannot be read.
    """
    if not environ.get("SLURM_JOB_ID") or not environ.get("SLURM_JOB_NODELIST"):
        return None
    names, tasks = names_in(environ, "SLURM_JOB_NODELIST"), counts_in(environ, "SLURM_TASKS_PER_NODE")
    slots: list[int | None] = list(tasks) if len(tasks) == len(names) else [None] * len(names)
    return Hosts(tuple(Host(name, count) for name, count in zip(names, slots, strict=True)))


def slurm_tasks(environ: Mapping[str, str]) -> int | None:
    """Return for how many tasks the Slurm allocation is, None outside of one or where it does not say."""
    if not environ.get("SLURM_JOB_ID"):
        return None
    if environ.get("SLURM_NTASKS", "").isdigit():
        return int(environ["SLURM_NTASKS"])
    hosts = slurm_hosts(environ)
    return None if hosts is None else hosts.slots


def slurm_cpus(environ: Mapping[str, str]) -> int:
    """Return how many CPUs the Slurm allocation has on all nodes, 0 where it does not say."""
    return sum(counts_in(environ, "SLURM_JOB_CPUS_PER_NODE"))


def _of_line(text: str, place: str) -> tuple[Form, Host]:
    """Return the host of a line, and in whose words it is; what else a line may say is mpirun's to read."""
    name, *words = text.split(maxsplit=1)
    rest = "".join(words)
    given = {match[1].replace("-", "_"): match[2] for match in _SLOTS.finditer(rest)}
    if "slots" in given:
        return Form.OPEN_MPI, Host(_name(name, place), _count(given["slots"], place))
    host = _host(name, place)
    if host.slots is not None:
        return Form.HYDRA, host
    if given or re.search(r"\b(username|user)\s*=", rest):
        return Form.OPEN_MPI, host
    if rest:
        raise ConfigError(f"{place} says {text!r}: write a host and its ranks, such as {_examples()}")
    return Form.PLAIN, host


def _host(word: str, place: str) -> Host:
    """Return the host in a word such as "node" or "node:2"."""
    name, colon, count = word.partition(":")
    return Host(_name(name, place), _count(count, place) if colon else None)


def _name(word: str, place: str) -> str:
    if not _NAME.fullmatch(word):
        raise ConfigError(f"{place} names {word!r}, which can be no host: use letters, digits, '.', '-' and '_'")
    return word


def _count(text: str, place: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_RANKS:
        if ":" in text:
            raise ConfigError(f"{place} has an IPv6 address, which mpirun does not take: give the name of the host")
        told = quoted(text)
        raise ConfigError(f"{place} gives {told} as a number of ranks: it must be a whole number, 1 to {MOST_RANKS}")
    return int(text)


def _merged(found: Sequence[Host]) -> tuple[Host, ...]:
    """Return each host once; one that is named several times takes all that it is named for."""
    times = Counter(host.name for host in found)
    if all(host.slots is None for host in found) and len(times) == len(found):
        return tuple(found)
    slots = Counter[str]()
    for host in found:
        slots[host.name] += host.slots or 1
    silent = {host.name for host in found if host.slots is None and times[host.name] == 1}
    repeated = len(times) < len(found)
    return tuple(Host(name, None if name in silent and not repeated else slots[name]) for name in times)


def _plain(name: str) -> str:
    """Return a name without its user."""
    return name.rpartition("@")[2]


def _is_host(name: str, resolve: Resolve) -> bool:
    try:
        resolve(name)
    except (OSError, UnicodeError):  # the latter for a name that is too long
        return False
    return True


def _resolve(name: str) -> object:
    return socket.getaddrinfo(name, None)


def _examples() -> str:
    return f"{Form.OPEN_MPI.value!r} or {Form.HYDRA.value!r}"


def num_ranks(hosts: Hosts | None, ranks: int | None, environ: Mapping[str, str]) -> int:
    """Return how many ranks to start: as many as asked for, else one for each slot or task, else one.

    Raise ConfigError where hosts or Slurm have no place for so many.
    """
    slots = hosts.slots if hosts is not None else slurm_tasks(environ)
    wanted = ranks if ranks is not None else slots or (len(hosts.each) if hosts else 1)
    if hosts is not None and slots is not None and wanted > slots:
        raise ConfigError(
            f"{hosts.told} has {slots} slots for {wanted} ranks: ask for at most {slots}, or give hosts more slots"
        )
    room = max(slots or 0, slurm_cpus(environ))
    if hosts is None and slots is not None and wanted > room:
        raise ConfigError(
            f"Slurm's allocation has {slots} tasks and {room} CPUs for {wanted} ranks: ask for at most {room}, or"
            f" allocate with --ntasks={wanted}"
        )
    return wanted
