"""Join what Slurm's queue says of jobs with what their servers wrote into endpoint files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollampi.launcher.endpoint import Endpoint, path_of
from ollampi.launcher.slurm_client import Queued, belongs
from ollampi.launcher.slurm_refused import reason_words
from ollampi.launcher.slurm_render import COMMENT
from ollampi.launcher.words import human_time, one_line, table

GONE, UNKNOWN = "GONE", "UNKNOWN"  # no states of Slurm: a file without a job, and a queue that did not answer
_SERVING = ("RUNNING", "COMPLETING", "SUSPENDED", UNKNOWN)


@dataclass(frozen=True)
class Server:
    """A job that serves, did or will; queued: None where the queue has it not; endpoint: None before it is ready."""

    job_id: str
    state: str
    queued: Queued | None
    endpoint: Endpoint | None

    @property
    def is_ready(self) -> bool:
        """Return whether its server answers, as far as queue and file tell."""
        return self.endpoint is not None and self.state in _SERVING

    @property
    def name(self) -> str:
        """Return the job's name."""
        return self.queued.name if self.queued else self.endpoint.name if self.endpoint else ""


def servers(
    queue: Iterable[Queued] | None, endpoints: Mapping[str, Endpoint], asked: str | None = None
) -> list[Server]:
    """Return the jobs of ollampi, in the order of their ids; of one job or array where it is asked for.

    queue: None where Slurm did not answer. It is a job of ollampi by its comment, its name or an endpoint file.
    """
    files = {job_id: each for job_id, each in endpoints.items() if asked is None or belongs(job_id, asked)}
    absent = UNKNOWN if queue is None else GONE
    jobs = {job.job_id: job for job in queue or () if _is_ours(job) or job.job_id in files}
    found = [
        Server(job_id, jobs[job_id].state if job_id in jobs else absent, jobs.get(job_id), files.get(job_id))
        for job_id in {**jobs, **files}
    ]
    return sorted(found, key=lambda each: _order(each.job_id))


def _is_ours(job: Queued) -> bool:
    """Return whether a job is one of ollampi, by its comment, or by its name where a site writes comments itself."""
    return COMMENT in (job.comment.partition(":")[0], job.name)


def _order(job_id: str) -> tuple[int, int, str]:
    """Return what sorts 9 before 12, 12_2 before 12_10, and 12_[3-5], as some print what waits, behind them."""
    job, _, task = job_id.partition("_")
    return int(job), int(task) if task.isdecimal() else len(task) and 10**18, task


def status_text(found: Sequence[Server]) -> str:
    """Return the table of jobs; no tokens."""
    rows = [("JOB", "NAME", "STATE", "TIME", "NODES", "MODEL", "URL")]
    for each in found:
        job, model = each.queued, each.endpoint.model if each.endpoint else "-"
        elapsed, nodes = (job.elapsed, job.nodes) if job else ("", "")
        line = (each.job_id, each.name, each.state, elapsed, nodes, model, _where(each))
        rows.append(tuple(one_line(cell) or "-" for cell in line))  # type: ignore[arg-type]
    return table(rows)


def server_text(each: Server, where: Path) -> str:
    """Return all that is known of a job, but for its token; where: the folder of endpoint files."""
    rows = [("Job:", each.job_id), ("Name:", each.name), ("State:", each.state)]
    if each.queued:
        job = each.queued
        waits = reason_words(job.reason) if job.is_pending else ""
        rows += [("Reason:", waits), ("Nodes:", job.nodes), ("Time:", f"{job.elapsed} of {job.limit}")]
        rows += [("Start:", job.start)]
    if each.endpoint:
        at = each.endpoint
        rows += [
            ("URL:", _where(each)),
            ("Model:", at.model),
            ("Ranks:", str(at.ranks)),
            ("Ready:", _since(at.started)),
        ]
        key = f"the token in {path_of(where, each.job_id)}" if at.token else "one of server.keys"
        rows += [("Logs:", at.logs), ("Key:", key)]
    return table([(name, one_line(value)) for name, value in rows if value and value != "N/A"])


def status_json(found: Sequence[Server], where: Path) -> dict[str, Any]:
    """Return the jobs as values for scripts; the token stays in the endpoint file, whose path is there."""
    return {"jobs": [_json(each, where) for each in found]}


def _json(each: Server, where: Path) -> dict[str, Any]:
    job, at = each.queued, each.endpoint
    return {
        "job_id": each.job_id,
        "name": each.name,
        "state": each.state,
        "ready": each.is_ready,
        "reason": job.reason if job and job.is_pending else None,
        "nodes": job.nodes or None if job else None,
        "elapsed": job.elapsed if job else None,
        "time_limit": job.limit if job else None,
        "start": job.start if job else None,
        "url": at.url if at else None,
        "host": at.host if at else None,
        "port": at.port if at else None,
        "ranks": at.ranks if at else None,
        "model": at.model if at else None,
        "started": at.started if at else None,
        "logs": at.logs or None if at else None,
        "endpoint_file": str(path_of(where, each.job_id)) if at else None,
    }


def _where(each: Server) -> str:
    """Return the URL, or why there is none."""
    if each.endpoint and each.is_ready:
        return each.endpoint.url
    if each.state == GONE:
        return f"gone; `ollampi slurm stop {each.job_id}` removes its file"
    if each.queued and each.queued.is_pending:
        return reason_words(each.queued.reason)
    return "not ready yet" if each.state in (*_SERVING, "CONFIGURING") else "-"


def _since(started: str) -> str:
    try:
        return f"{started} ({human_time(started).lower()})"
    except ValueError:
        return started
