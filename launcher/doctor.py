"""Look whether hosts, network and MPI are fit for a server, and say what to do where they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ollampi.launcher import mpi
from ollampi.launcher.doctor_checks import Finding, found
from ollampi.launcher.doctor_hosts import host_findings, usable_memory
from ollampi.launcher.doctor_network import (
    clock_findings,
    folder_findings,
    link_findings,
    model_findings,
    sum_findings,
)
from ollampi.launcher.doctor_world import Seen, probe, watch
from ollampi.launcher.given import chosen
from ollampi.launcher.hosts import Host, Hosts, slurm_hosts
from ollampi.mpiruntime.doctor_words import FOLDER_BYTES, MARK, Wanted
from ollampi.mpiruntime.errors import ConfigError

_RANKS_PART = "ollampi.mpiruntime.doctor_ranks"
_BEGUN = f"""import socket; print('{MARK}{{"began": "%s"}}' % socket.gethostname(), flush=True)"""
_FAMILIES = {
    mpi.Vendor.OPEN_MPI: ("Open MPI",),
    mpi.Vendor.MPICH: ("MPICH", "MVAPICH"),
    mpi.Vendor.INTEL: ("Intel MPI", "MPICH"),
}


@dataclass(frozen=True)
class Wish:
    """What to look at: ranks on hosts, None for this one or Slurm's; silence_s: after which ranks are given up.

    folder: that hosts share; model: as `ollampi plan` takes it; overrides: settings of the server.
    """

    ranks: int
    hosts: Hosts | None = None
    mpirun: str | None = None
    folder: str | None = None
    model: str | None = None
    silence_s: float = 60.0
    overrides: Sequence[str] = field(default_factory=tuple)


def diagnose(wish: Wish) -> list[Finding]:
    """Return what was found; raise ConfigError for what cannot be looked at."""
    if wish.folder is not None:
        check_folder(wish.folder)
    planned = {} if wish.model is None else _plan(wish.model, wish)
    wanted = _wanted(wish, planned)
    try:
        detected = mpi.detect(wish.mpirun)
    except ConfigError as error:
        why = str(error).partition(":")[0]
        return [found("mpi", "error", why), *_measured(_alone(wanted, wish), wanted, planned)]
    return _of_world(wish, detected, wanted, planned)


def check_folder(folder: str) -> None:
    """Raise ConfigError where no file can be written in a folder."""
    if not os.path.isdir(folder):
        raise ConfigError(f"--dir names {folder}, which is no folder; give one that all hosts share")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"--dir names {folder}, in which no file can be written: {error.strerror}; give one that you may write to"
        ) from error


def _of_world(wish: Wish, detected: mpi.Mpi, wanted: Wanted, planned: dict[str, Any]) -> list[Finding]:
    """Return what a world of ranks found."""
    mpi.link_library(detected, os.environ)
    added = mpi.environment(detected, os.geteuid() == 0, os.environ, wish.hosts, wanted.interface)
    environ = {**os.environ, **added}
    seen = watch(mpi.command(detected, wish.ranks, _program(wanted), wish.hosts), environ, wish.silence_s)
    findings = [_mpi(detected, seen), *_start(wish, detected, seen, environ), *_together(wish, seen)]
    if not seen.all("ranks"):
        seen = _alone(wanted, wish)
    return [*findings, *_measured(seen, wanted, planned)]


def _alone(wanted: Wanted, wish: Wish) -> Seen:
    """Return what this host is like, where ranks do not come as far as to tell."""
    return watch(_program(replace(wanted, alone=True)), os.environ, wish.silence_s)


def _mpi(detected: mpi.Mpi, seen: Seen) -> Finding:
    """Return whether mpirun and the library fit each other."""
    mine = f"{detected.vendor.value} {'.'.join(map(str, detected.version))} at {detected.mpirun}"
    library = next((str(each["library"]) for each in seen.all("library") if each["library"]), "")
    if library and not library.startswith(_FAMILIES[detected.vendor]):
        return found("mpi", "error", f"{mine}, but mpi4py loads {library}")
    return found("mpi", "ok", f"{mine}, library {library}" if library else mine)


def _start(wish: Wish, detected: mpi.Mpi, seen: Seen, environ: dict[str, str]) -> list[Finding]:
    """Return which hosts no rank starts on, each host being tried by itself where not all ranks began."""
    if len(seen.all("began")) >= wish.ranks:
        return [found("start", "ok", f"{wish.ranks} of {wish.ranks} ranks")]
    hosts = wish.hosts or slurm_hosts(os.environ)
    program = [sys.executable, "-c", _BEGUN]
    alone = {
        host.name: mpi.command(detected, 1, program, Hosts((Host(host.name, 1),)))
        for host in (hosts.each if hosts else ())
    }
    failing = {name: why for name, why in probe(alone, environ, wish.silence_s / 2).items() if why}
    if failing:
        return [found("start", "error", why, [name]) for name, why in failing.items()]
    ending = f"no rank within {wish.silence_s:g} s" if seen.status is None else f"mpirun ended with {seen.status}"
    return [
        found("start", "error", f"{ending}: {seen.why}" if seen.why else ending, [host.name for host in _each(hosts)])
    ]


def _each(hosts: Hosts | None) -> Sequence[Host]:
    return () if hosts is None else hosts.each


def _together(wish: Wish, seen: Seen) -> list[Finding]:
    """Return whether the ranks are one world, and reach each other."""
    if apart := seen.all("world"):
        return [found("world", "error", f"{len(apart)} worlds of {apart[0]['world']}", [], wish.ranks)]
    if len(seen.all("began")) < wish.ranks:
        return []
    whole = [found("world", "ok", wish.ranks, [], wish.ranks)] if seen.all("rank") else []
    return [*whole, *_reach(wish, seen)]


def _reach(wish: Wish, seen: Seen) -> list[Finding]:
    """Return which pairs of hosts do not reach each other, or that all do."""
    if silent := seen.all("silent"):
        told = f"nothing arrives within {_limit_s(wish):g} s"
        return [found("reach", "error", told, pair) for pair in _silent_pairs(seen, silent)]
    if seen.one("end"):
        return [found("reach", "ok", "all pairs")]
    stage, lost = seen.one("stage"), seen.one("lost")
    if lost is not None and stage is not None:
        return [found("reach", "error", str(lost["lost"]), dict.fromkeys(stage["hosts"]))]
    silence = f"nothing for {wish.silence_s:g} s"
    ended = silence if seen.status is None else f"mpirun ended with {seen.status}: {seen.why}"
    if stage is not None:
        return [found("reach", "error", f"{stage['stage']}: {ended}", dict.fromkeys(stage["hosts"]))]
    begun, joined = {str(each["began"]) for each in seen.all("began")}, {str(each["host"]) for each in seen.all("host")}
    what = "MPI has not started" if len(seen.all("host")) < wish.ranks else "the first collective"
    return [found("reach", "error", f"{what}: {ended}", sorted(begun - joined or begun))]


def _silent_pairs(seen: Seen, silent: list[dict[str, Any]]) -> list[list[str]]:
    """Return the pairs of hosts of ranks that do not hear each other, each once; one host where both are there."""
    host_of = {each["rank"]: str(each["host"]) for each in seen.all("host")}
    ranks = [(each["rank"], other) for each in silent for other in each["silent"]]
    pairs = {tuple(sorted({host_of.get(rank, f"rank {rank}") for rank in pair})) for pair in ranks}
    return [list(pair) for pair in sorted(pairs)]


def _measured(seen: Seen, wanted: Wanted, planned: dict[str, Any]) -> list[Finding]:
    """Return what is to be said of all that ranks measured."""
    told = seen.one("ranks")
    if told is None:
        return []
    hosts, names = told["hosts"], [str(facts["host"]) for facts in told["hosts"]]
    findings = host_findings(hosts)
    at = f"{wanted.host}:{wanted.port}"
    taken = f"{at}: {told['port']}" if told["port"] else f"{at} is free"
    findings.append(found("port", "error" if told["port"] else "ok", taken, names[:1]))
    for name, judge in (("clocks", clock_findings), ("links", link_findings)):
        if (each := seen.one(name)) is not None:
            findings += judge(each[name])
    findings += sum_findings([(each["sum"], each["seconds"]) for each in seen.all("sum")])
    if (folder := seen.one("folder")) is not None:
        findings += folder_findings(folder["folder"], names, FOLDER_BYTES)
    if (model := seen.one("model")) is not None:
        findings += model_findings(
            model["model"], names, planned["host_bytes"], [usable_memory(each) for each in hosts]
        )
    return findings


def _limit_s(wish: Wish) -> float:
    """Return how long ranks wait for each other: less than they are waited for."""
    return wish.silence_s / 2


def _wanted(wish: Wish, planned: dict[str, Any]) -> Wanted:
    """Return what the ranks are to measure; raise ConfigError for settings that cannot be used."""
    values = chosen(wish.overrides, os.environ)
    settings = {"interface": "exchange.interface", "host": "server.host", "port": "server.port"}
    given: dict[str, Any] = {name: values[path] for name, path in settings.items() if path in values}
    folder = None if wish.folder is None else os.path.abspath(wish.folder)
    return Wanted(**given, limit_s=_limit_s(wish), folder=folder, model=planned.get("folder"))


def _program(wanted: Wanted) -> list[str]:
    """Return the program of a rank."""
    return [sys.executable, "-m", _RANKS_PART, json.dumps(asdict(wanted))]


def _plan(model: str, wish: Wish) -> dict[str, Any]:
    """Return what a model takes on these ranks, as `ollampi plan --json` says it; raise ConfigError."""
    hosts = wish.hosts or slurm_hosts(os.environ)
    count = min(wish.ranks, len(_each(hosts)) or 1)
    line = [sys.executable, "-m", "ollampi.launcher.plan", model, f"ranks={wish.ranks}", f"hosts={count}", "--json"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"--model {model}: {done.stderr.strip().removeprefix('Error: ')}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"folder": str(Path(found["folder"]).absolute())}
