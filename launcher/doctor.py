"""Look whether hosts, network and MPI are fit for a server, and say what to do where they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from ollampi.mpiruntime.errors import ConfigError

_RANKS_PART = "ollampi.mpiruntime.doctor_ranks"
_FOLDER_BYTES = 64 << 20  # as mpiruntime.shared_folder, which takes torch to import
_BEGUN = """import socket; print('@ollampi-doctor {"began": "%s"}' % socket.gethostname(), flush=True)"""
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")  # by which a rank knows that it has company
_SERVER_HOST, _SERVER_PORT = "127.0.0.1", 11434


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
        return [found("mpi", "error", why), *_measured(_alone(wanted, wish), wish, planned)]
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


def _of_world(wish: Wish, detected: mpi.Mpi, wanted: str, planned: dict[str, Any]) -> list[Finding]:
    """Return what a world of ranks found."""
    mpi.link_library(detected, os.environ)
    interface = json.loads(wanted)["interface"]
    added = mpi.environment(detected, os.geteuid() == 0, os.environ, wish.hosts, interface)
    environ = {**os.environ, **added}
    program = [sys.executable, "-m", _RANKS_PART, wanted]
    seen = watch(mpi.command(detected, wish.ranks, program, wish.hosts), environ, wish.silence_s)
    findings = [_mpi(detected, seen), *_start(wish, detected, seen, environ), *_together(wish, seen)]
    if not seen.all("ranks"):
        seen = _alone(wanted, wish)
    return [*findings, *_measured(seen, wish, planned)]


def _alone(wanted: str, wish: Wish) -> Seen:
    """Return what a rank tells of this host without MPI, where ranks do not come as far as that."""
    environ = {name: value for name, value in os.environ.items() if name not in _SIZES}
    return watch([sys.executable, "-m", _RANKS_PART, wanted], environ, wish.silence_s)


def _mpi(detected: mpi.Mpi, seen: Seen) -> Finding:
    """Return whether mpirun and the library fit each other."""
    mine = f"{detected.vendor.value} {'.'.join(map(str, detected.version))} at {detected.mpirun}"
    library = next((str(each["library"]) for each in seen.all("library") if each["library"]), "")
    families = {mpi.Vendor.OPEN_MPI: ("Open MPI",), mpi.Vendor.MPICH: ("MPICH",), mpi.Vendor.INTEL: ("Intel", "MPICH")}
    if library and not library.startswith(families[detected.vendor]):
        return found("mpi", "error", f"{mine}, but mpi4py loads {library}")
    return found("mpi", "ok", f"{mine}, library {library}" if library else mine)


def _start(wish: Wish, detected: mpi.Mpi, seen: Seen, environ: dict[str, str]) -> list[Finding]:
    """Return which hosts no rank starts on, each host being tried by itself where not all ranks began."""
    if len(seen.all("began")) >= wish.ranks:
        return [found("start", "ok", f"{wish.ranks} ranks")]
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
    host_of = {each["rank"]: str(each["host"]) for each in seen.all("host")}
    if silent := seen.all("silent"):
        pairs = {tuple(sorted((host_of[e["rank"]], host_of.get(o, f"rank {o}")))) for e in silent for o in e["silent"]}
        told = f"nothing arrives within {_limit_s(wish):g} s"
        return [found("reach", "error", told, sorted(set(pair))) for pair in sorted(pairs)]
    if seen.one("end"):
        return [found("reach", "ok", "all pairs")]
    stage, lost = seen.one("stage"), seen.one("lost")
    if stage is None:
        absent = sorted({str(each["began"]) for each in seen.all("began")})
        told = "MPI has not started" if len(host_of) < wish.ranks else "ranks do not reach each other"
        told += (
            f" within {wish.silence_s:g} s" if seen.status is None else f": mpirun ended with {seen.status}: {seen.why}"
        )
        return [found("reach", "error", told, absent)]
    told = str(lost["lost"]) if lost else f"{stage['stage']}: nothing for {wish.silence_s:g} s"
    if lost is None and seen.status is not None:
        told = f"{stage['stage']}: mpirun ended with {seen.status}: {seen.why}"
    return [found("reach", "error", told, list(dict.fromkeys(stage["hosts"])))]


def _measured(seen: Seen, wish: Wish, planned: dict[str, Any]) -> list[Finding]:
    """Return what is to be said of all that ranks measured."""
    told = seen.one("ranks")
    if told is None:
        return []
    hosts, names = told["hosts"], [str(facts["host"]) for facts in told["hosts"]]
    findings = host_findings(hosts)
    at = json.loads(_wanted(wish, planned))
    where = f"{at['host']}:{at['port']}"
    taken = f"{where}: {told['port']}" if told["port"] else f"{where} is free"
    findings.append(found("port", "error" if told["port"] else "ok", taken, names[:1]))
    for name, judge in (("clocks", clock_findings), ("links", link_findings)):
        if (each := seen.one(name)) is not None:
            findings += judge(each[name])
    findings += sum_findings([(each["sum"], each["seconds"]) for each in seen.all("sum")])
    if (folder := seen.one("folder")) is not None:
        findings += folder_findings(folder["folder"], names, _FOLDER_BYTES)
    if (model := seen.one("model")) is not None:
        findings += model_findings(
            model["model"], names, planned["host_bytes"], [usable_memory(each) for each in hosts]
        )
    return findings


def _limit_s(wish: Wish) -> float:
    """Return how long ranks wait for each other: less than they are waited for."""
    return wish.silence_s / 2


def _wanted(wish: Wish, planned: dict[str, Any]) -> str:
    """Return what the ranks are to measure, as JSON; raise ConfigError for settings that cannot be used."""
    values = chosen(wish.overrides, os.environ)
    return json.dumps(
        {
            "limit_s": _limit_s(wish),
            "interface": values.get("exchange.interface"),
            "host": values.get("server.host", _SERVER_HOST),
            "port": values.get("server.port", _SERVER_PORT),
            "folder": None if wish.folder is None else os.path.abspath(wish.folder),
            "model": planned.get("folder"),
        }
    )


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
