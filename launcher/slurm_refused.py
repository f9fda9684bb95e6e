"""Say what to do about what a program of Slurm refuses."""

from __future__ import annotations

from collections.abc import Sequence

from ollampi.launcher.words import one_line

_AWAY = "`scontrol ping` shows whether Slurm's controller is up; try again when it is"
_MAYBE = "the job may be in the queue all the same: look with `ollampi slurm status` before the next try"
_TOO_MUCH = (
    "no nodes are like that: give less of --nodes, --ntasks, --cpus-per-task, --gpus-per-node or --mem, or another"
    " --partition; `sinfo -N -o '%N %c %m %G %f'` lists nodes with their cores, MB, GPUs and features"
)
# What Slurm's message has in it, in small letters: the remedy; the first row that fits counts.
_REMEDIES = (
    ("invalid partition", "`sinfo -s` lists the partitions for --partition"),
    ("invalid account", "give another --account or --partition; `sacctmgr show assoc user=$USER` lists yours"),
    ("invalid qos", "give another --qos; `sacctmgr show qos` lists them"),
    ("invalid feature", "give another --constraint; `sinfo -o '%N %f'` lists the features of nodes"),
    ("generic resource", "give another --gpus-per-node; `sinfo -o '%N %G'` lists the GPUs of nodes"),
    ("time limit is invalid", "give a shorter --time; `sinfo -o '%P %l'` lists the limits of partitions"),
    ("memory specification", "give less --mem; `sinfo -o '%N %m'` lists the memory of nodes in MB"),
    ("node configuration", _TOO_MUCH),
    ("node count specification", _TOO_MUCH),
    ("more processors requested", _TOO_MUCH),
    ("submitjoblimit", "stop another job, or wait: `ollampi slurm status` lists yours"),
    ("submitjobperuserlimit", "stop another job, or wait: `ollampi slurm status` lists yours"),
    ("violates accounting/qos", "ask for less, or give another --account or --qos"),
    ("accounting/qos policy", "ask for less, or give another --account or --qos"),
    ("job array", "give a smaller --array: `scontrol show config` has MaxArraySize"),
    ("down or drained", "give another --partition; `sinfo -s` lists them"),
    ("partition is down", "give another --partition; `sinfo -s` lists them"),
    ("invalid job id", "`ollampi slurm status` lists your jobs"),
    (
        "access/permission denied",
        "it is another user's, or Slurm does not know you; `ollampi slurm status` lists yours",
    ),
    ("socket timed out", f"{_MAYBE}; {_AWAY}"),
    ("unable to contact slurm controller", _AWAY),
    ("connection refused", _AWAY),
    ("zero bytes", _AWAY),
    ("controller not responding", _AWAY),
    ("resolve_ctls", "Slurm has no configuration on this host: log in to one of the cluster's"),
    ("slurm.conf", "Slurm has no configuration on this host: log in to one of the cluster's"),
    ("authentication", "Slurm's munge does not run on this host, or its clock is wrong: tell those who look after it"),
    ("munge", "Slurm's munge does not run on this host, or its clock is wrong: tell those who look after it"),
)
# Why a job waits: what that means, and what can be done.
_REASONS = {
    "None": "Slurm has not looked at it yet",
    "Resources": "waits until nodes are free",
    "Priority": "others are before it",
    "Dependency": "waits for another job",
    "JobHeldUser": "is held: `scontrol release JOB`",
    "JobHeldAdmin": "is held by those who look after Slurm",
    "BeginTime": "waits after it was queued again",
    "PartitionTimeLimit": "its --time is more than the partition allows",
    "PartitionNodeLimit": "its --nodes are more than the partition allows",
    "PartitionDown": "the partition is down; `sinfo -s` lists others",
    "PartitionInactive": "the partition takes no jobs now; `sinfo -s` lists others",
    "BadConstraints": "no nodes are like that",
    "ReqNodeNotAvail": "the nodes that it needs are down or reserved",
    "launch failed requeued held": "could not be started; `scontrol release JOB` tries again",
}
_FOR_EVER = ("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints")  # unless the partition or the job is changed
_LIMIT = ("QOS", "Assoc")  # beginnings of reasons such as QOSMaxCpuPerUserLimit, AssocGrpGRES


def refusal(program: str, told: str, status: int) -> str:
    """Return what a program's refusal says, in one line, with the remedy where it is known.

    told: what it wrote to stderr.
    """
    said = _said(program, told.splitlines()) or f"it ended with status {status}"
    small = said.lower()
    remedy = next((remedy for needle, remedy in _REMEDIES if needle in small), "")
    return f"{program} refused: {said}" + (f"; {remedy}" if remedy else "")


def warnings(program: str, told: str) -> list[str]:
    """Return the lines that a program which did its work wrote to stderr."""
    return [line for line in (_said(program, [line]) for line in told.splitlines()) if line]


def reason_words(reason: str) -> str:
    """Return why a job waits: Slurm's word, and what it means where that is known."""
    name = reason.split(",")[0].strip("()")
    meaning = _REASONS.get(name) or ("a limit of the account or its quality" if name.startswith(_LIMIT) else "")
    return f"{reason}: {meaning}" if meaning else reason


def is_for_ever(reason: str) -> bool:
    """Return whether a job that waits for this reason will never start."""
    return reason.split(",")[0].strip("()") in _FOR_EVER


def _said(program: str, lines: Sequence[str]) -> str:
    """Return lines as one, each once and without the program's name before it."""
    parts: dict[str, None] = {}
    for line in lines:
        text = one_line(line)
        for prefix in (f"{program}: ", "error: ", "fatal: "):
            text = text.removeprefix(prefix)
        parts |= {text: None} if text else {}
    return "; ".join(parts)
