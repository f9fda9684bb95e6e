"""Serve a model in a Slurm job: `python -m ollampi.launcher.slurm_job [KEY=VALUE ...]`, which the batch script becomes.

checks       the settings, the nodes that answer and have the model, the folder for logs, which way starts ranks
starts       the ranks, and again on the nodes that still answer where one of them ends
tells        when they serve: the endpoint file, and lines to paste
ends         at USR1 when running requests are done, at TERM at once; the endpoint file goes
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ollampi.launcher import endpoint, slurm_site
from ollampi.launcher.config import compose_config
from ollampi.launcher.given import chosen
from ollampi.launcher.keeper import Keeping, keep
from ollampi.launcher.kinds import Value
from ollampi.launcher.slurm_nodes import Allocation, Node, allocation, answering, asker
from ollampi.launcher.slurm_output import Output
from ollampi.launcher.slurm_place import (
    check_lacks,
    free_port,
    make_key,
    make_logs,
    model_name,
    needed_paths,
    reached_at,
    words,
)
from ollampi.launcher.slurm_site import Site, Way
from ollampi.launcher.slurm_trial import ways_that_work
from ollampi.launcher.supervise import SENT_ON
from ollampi.launcher.waiting import waiting
from ollampi.mpiruntime.errors import ConfigError, OllampiError

REQUEUE = "OLLAMPI_SLURM_REQUEUE"  # 1: the job goes back to the queue when it has drained before its time limit
_RANK = "ollampi.launcher.serve"
_PORT, _PORTS, _PORT_TAKEN = 11434, 10, "cannot listen on "  # of launcher.http_process


@dataclass(frozen=True)
class Place:
    """Where the server of a job is to be.

    logs: the folder, None for stderr; keys: the file with its key, None where the user has one.
    """

    job_id: str
    bound_to: str
    endpoints: Path
    logs: Path | None
    keys: Path | None
    token: str


@dataclass
class Job:
    """The server of one job; given: what the user gave, settings: its values by path; ways: the best first."""

    given: Sequence[str]
    settings: Mapping[str, Value]
    environ: Mapping[str, str]
    allocated: Allocation
    site: Site
    place: Place
    ways: list[Way] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    port: int = 0
    has_served: bool = False

    def build(self, attempt: int) -> tuple[list[str], dict[str, str]]:
        """Return line and environment of a start on the nodes that answer now; raise ConfigError where none does."""
        if attempt:
            self.nodes = self.live()
        if attempt and not self.has_served:
            self.ways.append(self.ways.pop(0))
        way = self.ways[0]
        program = [sys.executable, "-m", _RANK, *self.settled()]
        environ = self.environment(way)
        environ |= waiting(self.given, max(node.tasks for node in self.nodes), environ)
        names = ", ".join(f"{node.name} ({node.tasks})" for node in self.nodes)
        say(f"starting ranks on {names} with {way.program}")
        return slurm_site.line(self.site, way, self.nodes, program, self.allocated.cpus_per_task), environ

    def live(self) -> list[Node]:
        """Return the nodes that answer; raise ConfigError where none does, or one lacks what it needs."""
        nodes = self.allocated.nodes
        found, lacks = answering(nodes, asker(needed_paths(self.settings), self.environment(Way.PMI2)))
        check_lacks(lacks)
        if not found:
            raise ConfigError("no node of this job answers: `srun true` fails in it; leave nodes out with --exclude=…")
        if gone := [node.name for node in nodes if node not in found]:
            say(f"{', '.join(gone)} {'do' if len(gone) > 1 else 'does'} not answer; going on without")
        return found

    def try_ways(self) -> None:
        """Put the way that makes one world first; raise WorldError where none does."""
        self.ways = ways_that_work(self.site, self.nodes, self.allocated.cpus_per_task, self.environment, say)

    def environment(self, way: Way) -> dict[str, str]:
        """Return the environment of a start."""
        given = self.settings.get("exchange.interface")
        network = given if isinstance(given, str) else None
        return slurm_site.environment(self.site, way, self.environ, self.nodes or self.allocated.nodes, network)

    def ready(self, _address: str) -> None:
        """Write the endpoint file and print lines to paste."""
        place, host, self.has_served = self.place, reached_at(self.place.bound_to), True
        made = endpoint.Endpoint(
            url=f"http://{f'[{host}]' if ':' in host else host}:{self.port}",
            job_id=place.job_id,
            name=self.environ.get("SLURM_JOB_NAME", "ollampi"),
            token=place.token,
            host=host,
            port=self.port,
            ranks=sum(node.tasks for node in self.nodes),
            model=model_name(self.settings),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            logs=str(place.logs or ""),
        )
        try:
            file = endpoint.write(made, place.endpoints)
        except ConfigError as e:
            say(str(e))
        else:
            say(words(made, place.keys, self.environ.get("SLURM_SUBMIT_HOST", "LOGIN_NODE"), file))

    def settled(self) -> list[str]:
        """Return the settings that were given, and those that a job has besides."""
        place, host = self.place, reached_at(self.place.bound_to)
        added = [*self.given, f"server.host={place.bound_to}", f"server.port={self.port}"]
        added += [f"logging.folder={place.logs}"] if place.logs else []
        added += [f"server.keys={place.keys}"] if place.keys else []
        # ranks compute on cores of their own, by their local rank, where they share enough of them
        added += [] if "pin" in self.settings else ["pin=true"]
        return added + ([f"server.hosts=[{host}]"] if "." in host and "server.hosts" not in self.settings else [])


def prepare(given: Sequence[str], environ: Mapping[str, str]) -> Job:
    """Return the job of this process; raise ConfigError before anything is started."""
    settings = chosen(given, environ)
    allocated = allocation(environ)
    job_id = endpoint.own_job_id(environ) or ""
    endpoints = endpoint.folder(environ)
    endpoint.prepare(endpoints)
    endpoint.remove(endpoints, job_id)  # of this job before it was queued again, where its first node died
    where = endpoint.rank_logs(Path(environ.get("SLURM_SUBMIT_DIR", ".")).absolute(), job_id)
    logs = settings.get("logging.folder")
    folder = Path(os.path.abspath(os.path.expanduser(logs))) if isinstance(logs, str) else where
    make_logs(folder)
    keys, token = (None, "") if settings.get("server.keys") else make_key(folder)
    host = settings.get("server.host")
    kept = None if "logging.folder" in settings and logs is None else folder
    place = Place(job_id, host if isinstance(host, str) else "0.0.0.0", endpoints, kept, keys, token)
    job = Job(given, settings, environ, allocated, slurm_site.look(environ), place)
    job.nodes = job.live()
    job.try_ways()
    return job


def serve(job: Job, sent: set[int]) -> int:
    """Return the exit status of the job, which serves until it is told to end.

    sent: the signals that told it, to which those that come are added: one that came before ends the job at once. Raise
    OllampiError where it cannot serve.
    """
    wanted = job.settings.get("server.port", _PORT)
    assert isinstance(wanted, int)
    output = Output()
    try:
        for _ in range(_PORTS):
            job.port = free_port(job.place.bound_to, wanted)
            try:
                return keep(job.build, Keeping(compose_config(job.settled(), job.environ), None, job.ready, sent))
            except ConfigError as e:
                if _PORT_TAKEN not in str(e):
                    raise
        raise ConfigError(f"{_PORTS} ports in turn were taken between the choice and the start; try again")
    finally:
        output.close()
        endpoint.remove(job.place.endpoints, job.place.job_id)


def main() -> None:
    """Serve; the exit status is 1, with one message, where the job cannot."""
    sent: set[int] = set()
    for number in SENT_ON:  # until the keeper takes them, which may be long after the preparation
        signal.signal(number, lambda number, _frame: sent.add(SENT_ON[signal.Signals(number)]))
    try:
        job = prepare(sys.argv[1:], os.environ)
        status = 0 if sent else serve(job, sent)
    except OllampiError as e:
        sys.exit(f"ollampi: {e}")
    if signal.SIGUSR1 in sent and signal.SIGTERM not in sent and os.environ.get(REQUEUE) == "1":
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
    sys.exit(status)


def say(text: str) -> None:
    """Print a message to the job's output."""
    with suppress(OSError):  # a full disk must not end the server
        print(f"ollampi job: {text}", flush=True)


if __name__ == "__main__":
    main()
