"""Offer the commands about servers in Slurm jobs: write and submit the batch script, look at jobs, end them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from ollampi.launcher import endpoint
from ollampi.launcher.cli_options import json_text, write
from ollampi.launcher.given import chosen
from ollampi.launcher.slurm_client import SlurmError, cancel, drain, queue
from ollampi.launcher.slurm_environment import passed_on
from ollampi.launcher.slurm_logs import follow, log_file, whole
from ollampi.launcher.slurm_refused import reason_words
from ollampi.launcher.slurm_render import LEAD_S, Job, options, render
from ollampi.launcher.slurm_status import Server, server_text, servers, status_json, status_text
from ollampi.launcher.slurm_submit import submit_job
from ollampi.launcher.words import one_line, printable
from ollampi.mpiruntime.errors import ConfigError

_PASS_ON = {"ignore_unknown_options": True}
_PROGRAM = (sys.executable, "-m", "ollampi")
_MARGIN_S = 60.0  # of the signal before the time that running requests get
_JOB_OPTIONS = (
    click.option("-N", "--nodes", metavar="N", type=int, help="Number of nodes.  [default: Slurm's choice]"),
    click.option("-n", "--ntasks", metavar="N", type=int, help="Number of ranks.  [default: one on each node]"),
    click.option("-c", "--cpus-per-task", metavar="N", type=int, default=1, help="Cores of each rank.  [default: 1]"),
    click.option("--gpus-per-node", metavar="N", type=int, default=0, help="GPUs on each node."),
    click.option("--mem", metavar="SIZE", help="Memory on each node, such as 64G; 0: all."),
    click.option("-t", "--time", metavar="TIME", help="Time limit, such as 8:00:00 or 2-00:00:00."),
    click.option("-p", "--partition", metavar="NAME", help="Partition."),
    click.option("-A", "--account", metavar="NAME", help="Account."),
    click.option("-q", "--qos", metavar="NAME", help="Quality of service."),
    click.option("-C", "--constraint", metavar="FEATURES", help="Features of nodes, such as a100&ib."),
    click.option("-x", "--exclude", metavar="NODES", help="Nodes to leave out, such as n[1-3],m7."),
    click.option("-J", "--job-name", "name", metavar="NAME", default="ollampi", help="Name.  [default: ollampi]"),
    click.option("--array", "replicas", metavar="N", type=int, help="N replicas, each a server of its own."),
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        help="Where the job writes to.  [default: ollampi-%j.log, %j its id; ollampi-%A_%a.log with --array]",
    ),
    click.option(
        "--requeue/--no-requeue",
        default=True,
        help="Whether Slurm starts the job anew after a node failed.  [default: yes]",
    ),
    click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1, type=click.UNPROCESSED),
)


def _job_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_JOB_OPTIONS):
        command = option(command)
    return command


def _known_jobs(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return jobs that begin so, for the shell: those with endpoint files, which are found without asking Slurm."""
    try:
        found, _ = endpoint.read_all(endpoint.folder(os.environ))
    except ConfigError:
        return []
    return [job_id for job_id in found if job_id.startswith(incomplete)]


def _job_argument(required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.argument("job", required=required, shell_complete=_known_jobs)


@click.group()
def slurm() -> None:
    """Serve in Slurm jobs: write the batch script, submit it, look at jobs and end them."""


@slurm.command("render", context_settings=_PASS_ON)
@_job_options
def render_script(overrides: tuple[str, ...], **wanted: Any) -> None:
    """Print the batch script that `slurm submit` would submit.

    KEY=VALUE are settings such as model=NAME, and options of the server; `ollampi serve --help` lists both. The script
    needs nothing of this program but that nodes find it where it is here.
    """
    _, script = _script(overrides, wanted, dict(os.environ))
    click.echo(os.fsencode(script), nl=False)


@slurm.command(context_settings=_PASS_ON)
@_job_options
@click.option("--wait", is_flag=True, help="Come back when the server is ready, and print its URL.")
@click.option("--wait-timeout", metavar="SECONDS", type=float, help="With --wait: for so long at most.")
def submit(overrides: tuple[str, ...], wait: bool, wait_timeout: float | None, **wanted: Any) -> None:
    """Submit a job that serves, and print its id.

    KEY=VALUE are settings such as model=NAME, and options of the server; `ollampi serve --help` lists both. They are
    checked first. The job gets the variables that programs and the server need, but no keys and passwords.
    """
    environ = passed_on(os.environ)
    job, script = _script(overrides, wanted, environ)
    environ = passed_on(environ, (name for name, _ in options(job)))
    submit_job(job, script, overrides, environ, _say, click.echo, wait, wait_timeout)


@slurm.command(context_settings={**_PASS_ON, "allow_interspersed_args": False})
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1, type=click.UNPROCESSED)
def job(overrides: tuple[str, ...]) -> None:
    """Start the server inside a job, as the batch script does."""
    os.execv(sys.executable, [sys.executable, "-m", "ollampi.launcher.slurm_job", *overrides])


@slurm.command()
@_job_argument(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the jobs as JSON.")
def status(job: str | None, as_json: bool) -> None:
    """List your jobs that serve, or tell all about one.

    Each replica of an array is a job of its own, such as 12_0. The key of a server is the token in its endpoint file,
    which is never printed.
    """
    where = endpoint.folder(os.environ)
    found, trouble = _servers(job)
    if job is not None and not found and not trouble:
        raise ConfigError(f"there is no job {job} of ollampi; `ollampi slurm status` lists yours")
    if trouble and not found:
        raise trouble
    if as_json:
        write(json_text(status_json(found, where)))
    elif job is None:
        write(status_text(found))
    else:
        write("\n".join(server_text(each, where) for each in found))
    if trouble:
        raise trouble


@slurm.command()
@_job_argument()
@click.option("--now", is_flag=True, help="End it at once, running requests too.")
def stop(job: str, now: bool) -> None:
    """Have the server of a job finish what runs and leave; take a job that waits out of the queue."""
    found, trouble = _servers(job)
    if trouble:
        raise trouble
    if not found:
        raise ConfigError(f"there is no job {job} of ollampi; `ollampi slurm status` lists yours")
    where = endpoint.folder(os.environ)
    live = [each.job_id for each in found if each.queued and not each.queued.has_ended]
    drained = [each.job_id for each in found if each.state == "RUNNING" and not now and _drained(each.job_id)]
    cancel([job_id for job_id in live if job_id not in drained])
    for each in found:
        if each.job_id in drained:
            click.echo(f"job {each.job_id} finishes what runs, and ends")
        else:
            endpoint.remove(where, each.job_id)  # which a server does itself if it has the time
            click.echo(f"job {each.job_id} {'is cancelled' if each.job_id in live else 'is over'}")


@slurm.command()
@_job_argument()
@click.option("--follow", "goes_on", is_flag=True, help="Go on until the job is over or Ctrl-C.")
@click.option("--rank", metavar="N", type=int, help="The log of one rank, not the output of the job.")
def logs(job: str, goes_on: bool, rank: int | None) -> None:
    """Print what a job wrote."""
    endpoint.check_job_id(job)
    path = log_file(job, rank, endpoint.read(endpoint.folder(os.environ), job))
    for text in follow(path, lambda: _goes_on(job)) if goes_on else ():
        write(printable(text))
    if not path.exists():
        states = [f"it is {each.state} ({reason_words(each.reason)})" for each in queue(job)[:1]]
        raise ConfigError(f"job {job} has not written {path} yet; {one_line(', '.join(states) or 'it is over')}")
    for text in whole(path) if not goes_on else ():
        write(printable(text))


def _script(overrides: tuple[str, ...], wanted: dict[str, Any], environ: dict[str, str]) -> tuple[Job, str]:
    """Return the job and its script; raise ConfigError for what cannot be used of either."""
    drain_s = chosen(overrides, environ).get("drain_timeout_s")
    lead_s = max(LEAD_S, int(drain_s + _MARGIN_S)) if isinstance(drain_s, int | float) else LEAD_S
    made = Job(**wanted, lead_s=lead_s)
    where = str(endpoint.folder(environ)) if environ.get(endpoint.VARIABLE) else ""
    return made, render(made, overrides, _PROGRAM, where)


def _servers(job: str | None) -> tuple[list[Server], SlurmError | None]:
    """Return the jobs, and what is wrong with Slurm: servers go on without its controller."""
    if job is not None:
        endpoint.check_job_id(job)
    found, wrong = endpoint.read_all(endpoint.folder(os.environ))
    for text in wrong:
        _say(text)
    try:
        return servers(queue(job), found, job), None
    except SlurmError as error:
        return servers(None, found, job), error


def _drained(job_id: str) -> bool:
    """Tell a job to drain; return False where it has no batch step yet that could, or no longer."""
    try:
        drain(job_id)
    except SlurmError as error:
        _say(f"{error}; job {job_id} is cancelled instead")
        return False
    return True


def _goes_on(job: str) -> bool:
    try:
        return any(not each.has_ended for each in queue(job))
    except SlurmError:  # the job goes on without Slurm's controller
        return True


def _say(text: str) -> None:
    click.echo(f"ollampi: {one_line(text)}", err=True)
