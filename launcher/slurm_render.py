"""Write the batch script of a Slurm job that serves a model: a pure function of what the user asks for.

What a user gives reaches neither a shell nor another option of sbatch: values of #SBATCH lines are checked and quoted
as sbatch reads them, settings are quoted as bash reads them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ollampi.mpiruntime.errors import ConfigError

COMMENT = "ollampi"  # of every job, by which `ollampi slurm status` knows them
LEAD_S = 120  # the server drains so long before the time limit
_EARLY_S = 60  # Slurm may send a signal so much earlier
_LONGEST = 1024
_PLAIN = re.compile(r"[A-Za-z0-9@%+=:,./_^-]+")
_TIME = re.compile(r"(?:(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?|(?P<rest>\d+(?::\d+){0,2}))", re.ASCII)
_NO_LIMIT = ("infinite", "unlimited")
# option of `ollampi slurm`: what its value looks like, in a pattern and in words
_FORMS = {
    "partition": (r"\w[\w.,@+:-]*", "the name of a partition, or several with commas between them"),
    "account": (r"\w[\w.@+:/-]*", "the name of an account"),
    "qos": (r"\w[\w.,@+:-]*", "the name of a quality of service"),
    "constraint": (r"[\w(\[][\w.,@+:&|*()\[\]=-]*", "features of nodes, such as a100&ib or [rack1|rack2]"),
    "exclude": (r"\w[\w.,\[\]-]*", "names of nodes, such as n[1-3],m7"),
    "mem": (r"[0-9]+[KMGTkmgt]?", "a size for each node, such as 64G, or 0 for all of it"),
    "output": (r"(?:[^%\\]|%%|%[0-9]*[a-zA-Z])+", "a path without \\, in which %j stands for the job and %% for a %"),
}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Job:
    """What a job shall get; None and 0: what Slurm gives by itself.

    ntasks: ranks, by default one for each node; replicas: tasks of an array, each with a server of its own, None for a
    job that is none; lead_s: how long before the time limit the server drains; the others are as sbatch has them.
    """

    nodes: int | None = None
    ntasks: int | None = None
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    mem: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    name: str = "ollampi"
    replicas: int | None = None
    output: str | None = None
    requeue: bool = True
    lead_s: int = LEAD_S


def render(job: Job, overrides: Sequence[str], program: Sequence[str] = ("ollampi",), endpoints: str = "") -> str:
    """Return the batch script; raise ConfigError for what sbatch would refuse or misread.

    program: the words that start ollampi on the nodes; endpoints: the folder of endpoint files, "" for the default.
    """
    lines = [f"#SBATCH --{name}{'' if value is None else f'={_quoted(value)}'}" for name, value in options(job)]
    setting = [f"export OLLAMPI_ENDPOINTS={word(endpoints)}"] if endpoints else []
    line = " ".join(map(word, [*program, "slurm", "job", *overrides]))
    head = ["#!/bin/bash", "# Serves a model. `ollampi slurm render` wrote this for sbatch."]
    # exec: the signals that Slurm sends to the batch shell reach the server's supervisor
    return "\n".join([*head, *lines, *setting, f"exec {line}"]) + "\n"


def options(job: Job) -> list[tuple[str, str | None]]:
    """Return the options of sbatch with their values, None for those that take none; raise ConfigError."""
    _check_numbers(job)
    _check_time(job)
    ntasks = job.ntasks or job.nodes or 1
    wanted = (
        ("job-name", _checked("job-name", job.name)),
        ("comment", COMMENT),
        ("nodes", job.nodes and str(job.nodes)),
        ("ntasks", str(ntasks)),
        ("cpus-per-task", str(job.cpus_per_task)),
        ("gpus-per-node", job.gpus_per_node and str(job.gpus_per_node)),
        ("mem", _checked("mem", job.mem)),
        ("time", job.time),
        ("partition", _checked("partition", job.partition)),
        ("account", _checked("account", job.account)),
        ("qos", _checked("qos", job.qos)),
        ("constraint", _checked("constraint", job.constraint)),
        ("exclude", _checked("exclude", job.exclude)),
        ("array", job.replicas and f"0-{job.replicas - 1}"),
        ("output", _checked("output", job.output) or output_of(job)),
        ("open-mode", "append"),
        ("signal", f"B:USR1@{job.lead_s}"),
    )
    flags = ("no-kill", "requeue" if job.requeue else "no-requeue")
    return [*((name, str(value)) for name, value in wanted if value), *((name, None) for name in flags)]


def output_of(job: Job) -> str:
    """Return the file that the job's output goes to, as sbatch has it."""
    return job.output or ("ollampi-%A_%a.log" if job.replicas else "ollampi-%j.log")


def word(text: str) -> str:
    """Return a text as one word of a line of bash, in one line whatever it holds."""
    if not _UNPRINTABLE.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _UNPRINTABLE.sub(lambda found: f"\\{ord(found[0]):03o}", escaped) + "'"


def _quoted(value: str) -> str:
    r"""Return a value as one word of an #SBATCH line.

    sbatch knows "…", '…' and \ before a character, also in quotes; older ones know '…' not, and take a # in quotes for
    a comment. A line with the words packjob or hetjob, in any case, loses them or is the start of another job.
    """
    if not _PLAIN.fullmatch(value):
        value = '"' + re.sub(r'(["\\#])', r"\\\1", value) + '"'
    return re.sub("(pack|het)(job)", r"\1\\\2", value, flags=re.IGNORECASE)


def _checked(option: str, value: str | None) -> str | None:
    """Return the value of an option; raise ConfigError for one that sbatch, or a table of jobs, could not hold."""
    if value is None:
        return None
    form, words = _FORMS.get(option, (r"[^-].*", "a name that does not begin with -"))
    if value.isprintable() and value == value.strip() and len(value) <= _LONGEST and re.fullmatch(form, value):
        return value
    raise ConfigError(f"--{option} is {value[:_LONGEST]!r}; it must be {words}, in one line")


def _check_numbers(job: Job) -> None:
    least = {"nodes": 1, "ntasks": 1, "cpus-per-task": 1, "gpus-per-node": 0, "array": 1}
    given = (job.nodes, job.ntasks, job.cpus_per_task, job.gpus_per_node, job.replicas)
    for (option, low), value in zip(least.items(), given, strict=True):
        if value is not None and not low <= value <= 1_000_000:
            raise ConfigError(f"--{option} is {value}; it must be at least {low} and at most 1000000")
    if job.nodes and job.ntasks and job.ntasks < job.nodes:
        raise ConfigError(
            f"{job.ntasks} ranks cannot be spread over {job.nodes} nodes;"
            f" give --ntasks {job.nodes} or more, or fewer --nodes"
        )


def _check_time(job: Job) -> None:
    """Raise ConfigError for a time limit that is none, or that leaves no time to serve."""
    if job.time is None or job.time.lower() in _NO_LIMIT:
        return
    seconds = _seconds(job.time)
    if seconds is None:
        raise ConfigError(
            f"--time is {job.time[:_LONGEST]!r}; it must be MINUTES, H:MM:SS, D-HH or D-HH:MM:SS, such as 2:00:00"
        )
    least = job.lead_s + _EARLY_S
    if 0 < seconds <= least:  # 0: none
        raise ConfigError(
            f"--time is {job.time}; the server drains {job.lead_s} s before the limit, and Slurm may tell it"
            f" {_EARLY_S} s earlier: give more than {-(-least // 60)} minutes"
        )


def _seconds(time: str) -> int | None:
    """Return a time limit of Slurm in seconds, None for what is none."""
    found = _TIME.fullmatch(time)
    if found is None or len(time) > 32:
        return None
    if found["d"]:
        days, hours, minutes, seconds = (int(found[name] or 0) for name in ("d", "dh", "dm", "ds"))
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    parts = [int(each) for each in found["rest"].split(":")]
    hours, minutes, seconds = {1: (0, *parts, 0), 2: (0, *parts), 3: tuple(parts)}[len(parts)]
    return (hours * 60 + minutes) * 60 + seconds
