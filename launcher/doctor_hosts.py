"""Judge what hosts are like, from what their first ranks tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ollampi.launcher.doctor_checks import CHECKS, GB, MIB, Finding, Status, found
from ollampi.launcher.words import human_size

Facts = Mapping[str, Any]


def host_findings(hosts: Sequence[Facts]) -> list[Finding]:
    """Return what is to be said of each host by itself, and of all of them side by side."""
    each = [finding for facts in hosts for finding in _of_one(facts)]
    return [*each, *_gpus(hosts), *_versions(hosts), *_kernels(hosts)]


def usable_memory(facts: Facts) -> int:
    """Return the bytes that ranks can still take on a host, within its cgroups and ulimit."""
    return min(int(size) for size in (facts["memory_free"], facts["memory_own"]) if size is not None)


def _of_one(facts: Facts) -> list[Finding]:
    """Return what is to be said of one host."""
    where = [str(facts["host"])]
    cores, ranks = facts["usable_cores"], facts["ranks"]
    free = usable_memory(facts)
    locked = facts["locked_memory"]
    told = f"{cores}" + (f" of {facts['all_cores']}" if cores < facts["all_cores"] else "")
    return [
        found("cores", "ok" if cores >= _limit("cores") else "warning", told, where),
        found("ranks", "ok" if ranks <= cores else "warning", ranks, where, cores),
        _least("memory", facts["memory_total"] / GB, where),
        _least("memory free", free / GB, where),
        found("load", _at_most("load", facts["load"] / cores), round(facts["load"] / cores, 2), where),
        _least("shared memory", facts["shm_free"] / MIB, where),
        _least("open files", facts["open_files"], where, "unlimited"),
        found(
            "locked memory",
            "warning"
            if facts["infiniband"] and locked is not None and locked / MIB < _limit("locked memory")
            else "ok",
            "unlimited" if locked is None else round(locked / MIB, 1),
            where,
        ),
        _least("port range", facts["ports"], where),
    ]


def _limit(name: str) -> float:
    limit = CHECKS[name].limit
    assert not isinstance(limit, str)
    return limit or 0


def _least(name: str, value: float | None, where: Sequence[str], unlimited: str = "") -> Finding:
    """Return a finding of what must not be less than its limit; None is unlimited."""
    if value is None:
        return found(name, "ok", unlimited, where)
    return found(name, "ok" if value >= _limit(name) else "warning", value, where)


def _at_most(name: str, value: float) -> Status:
    return "ok" if value <= _limit(name) else "warning"


def _gpus(hosts: Sequence[Facts]) -> list[Finding]:
    """Return what is to be said of GPUs: hosts that differ from most, and such whose torch sees none of theirs."""
    kinds = [_gpu_words(facts) for facts in hosts]
    usual = Counter(kinds).most_common(1)[0][0]
    findings = []
    for facts, kind in zip(hosts, kinds, strict=True):
        blind = facts["gpus"] and not facts["torch_gpus"]
        told = f"{kind}, of which torch sees none" if blind else kind
        findings.append(found("gpus", "warning" if blind or kind != usual else "ok", told, [facts["host"]]))
        if facts["gpus"]:
            smallest = min(gpu["memory_total"] for gpu in facts["gpus"])
            findings.append(_least("gpu memory", smallest / GB, [facts["host"]]))
    return findings


def _gpu_words(facts: Facts) -> str:
    """Return the GPUs of a host in words: how many of each kind, their memory and driver."""
    kinds = Counter((gpu["name"], gpu["memory_total"], gpu["driver"]) for gpu in facts["gpus"])
    told = [f"{count} x {name}, {human_size(size)}, driver {driver}" for (name, size, driver), count in kinds.items()]
    return "; ".join(told) or (f"{facts['torch_gpus']} (by torch)" if facts["torch_gpus"] else "none")


def _versions(hosts: Sequence[Facts]) -> list[Finding]:
    """Return what is to be said of versions; another Ollampi is an error, since ranks must speak alike."""
    findings = []
    for name, status in (("python", "warning"), ("ollampi", "error")):
        findings += _alike(
            name, [str(facts[name]) for facts in hosts], hosts, "error" if status == "error" else "warning"
        )
    told = []
    for facts in hosts:
        others = {
            package: version
            for package, version in facts["packages"].items()
            if version != hosts[0]["packages"].get(package)
        }
        missing = [package for package, version in facts["packages"].items() if not version]
        words = [f"no {package}" for package in missing]
        words += [f"{package} {version}" for package, version in others.items() if version]
        told.append(", ".join(words))
    usual = f"{len(hosts[0]['packages'])} alike"
    return findings + [
        found("packages", "warning" if words else "ok", words or usual, [facts["host"]])
        for words, facts in zip(told, hosts, strict=True)
    ]


def _alike(name: str, values: Sequence[str], hosts: Sequence[Facts], otherwise: Status) -> list[Finding]:
    """Return a finding for each host, which is well where its value is rank 0's host's."""
    return [
        found(name, "ok" if value == values[0] else otherwise, value, [facts["host"]])
        for value, facts in zip(values, hosts, strict=True)
    ]


def _kernels(hosts: Sequence[Facts]) -> list[Finding]:
    """Return what is to be said of the native kernels."""
    usual = Counter(facts["kernels"] for facts in hosts).most_common(1)[0][0]
    return [
        found(
            "kernels",
            "ok" if facts["kernels"] and facts["kernels"] == usual else "warning",
            facts["kernels"] or "none: torch computes",
            [facts["host"]],
        )
        for facts in hosts
    ]
