"""Measure each point of a sweep in a Slurm job of its own, and wait for their records."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sweep_points import Point, Sweep
from sweep_records import Record, Records
from sweep_run import now_text
from sweep_server import Subject

from ollampi.mpiruntime.errors import ConfigError

Tool = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]
SCRIPT = Path(__file__).resolve().parent.parent / "slurm" / "sweep.sh"
PROGRAM = Path(__file__).resolve().parent / "sweep.py"
_PREFIX = "sweep-"  # of the names of jobs, behind which the point's key stands
_POLL_S = 2.0
_LATE_S = 30.0  # how long the record of a job that has gone may take to be seen over a shared file system
_LAST_LINE = 400  # characters of it that are told


def sbatch_line(sweep: Sweep, point: Point, key: str, words: Sequence[str], folder: Path) -> list[str]:
    """Return the words by which a point is submitted, none of which a shell reads; options of the user come last."""
    server = point.server
    line = ["sbatch", "--parsable", f"--job-name={_PREFIX}{key}", f"--ntasks={server.ranks}"]
    line += [f"--cpus-per-task={server.threads}"] if server.threads else []
    line += [f"--output={folder / f'{_PREFIX}{key}.log'}".replace("%", "%%")]
    own = ["slurm=false", "dry_run=false", f"folder={folder}", f"only=[{key}]", "retry=true"]
    return [*line, *sweep.options["slurm_options"], str(SCRIPT), sys.executable, str(PROGRAM), *words, *own]


def submit(
    sweep: Sweep,
    points: Sequence[Point],
    words: Sequence[str],
    records: Records,
    model: Subject,
    say: Callable[[str], None],
    tool: Tool | None = None,
) -> None:
    """Submit a job for each point that has none, and wait until all have records, as long as the options allow.

    A job that ends without a record is noted as failed. Raise ConfigError where Slurm refuses a job; those that this
    call has submitted are cancelled then.
    """
    tool, before = tool or _run, records.read()
    keys = {sweep.key(point, model.model.digest): point for point in points}
    queued = _queued(tool) if keys else {}
    waited = {key: job for key, job in queued.items() if key in keys}
    mine: list[str] = []
    for key, point in keys.items():
        if key not in waited:
            found = tool(sbatch_line(sweep, point, key, words, records.folder))
            if found.returncode:
                _cancel(mine, tool)
                raise ConfigError(
                    f"sbatch refused {point.text}: {_one_line(found.stderr)}; no job is left of this sweep"
                )
            waited[key] = found.stdout.strip().partition(";")[0]
            mine.append(waited[key])
    say(f"{len(mine)} jobs submitted, {len(waited) - len(mine)} are in the queue already")
    if sweep.options["slurm_wait_s"]:
        _wait(sweep, {key: keys[key] for key in waited}, before, records, model, say, tool)


def _wait(
    sweep: Sweep,
    left: dict[str, Point],
    before: dict[str, Record],
    records: Records,
    model: Subject,
    say: Callable[[str], None],
    tool: Tool,
) -> None:
    """Return when all points have new records or the time is over; before: what was known earlier."""
    total, end, gone = len(left), time.monotonic() + sweep.options["slurm_wait_s"], dict[str, float]()
    while left and time.monotonic() < end:
        time.sleep(_POLL_S)
        queued, known = _queued(tool), records.read()
        for key in list(left):
            if key in known and known[key] != before.get(key):
                told = known[key].error or "measured"
                say(f"[{total - len(left) + 1}/{total}] {left.pop(key).text}: {told}")
            elif key not in queued and time.monotonic() > gone.setdefault(key, time.monotonic()) + _LATE_S:
                records.add(_lost(key, left.pop(key), records.folder, model))
    if left:
        say(f"{len(left)} jobs are not done after {sweep.options['slurm_wait_s']:g} s; the same line waits on")


def _lost(key: str, point: Point, folder: Path, model: Subject) -> Record:
    """Return the record of a job that ended without one."""
    log = folder / f"{_PREFIX}{key}.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    last = next((line for line in reversed(lines) if line.strip()), "no log")
    error = f"the job ended without a record: {_one_line(last)}; see {log}"
    return Record(key, model.model.name.short, model.model.digest, point, error=error, at=now_text())


def _queued(tool: Tool) -> dict[str, str]:
    """Return the jobs of points that wait or run, by key; raise ConfigError where Slurm does not answer."""
    found = tool(["squeue", "--noheader", "--me", "--format=%i %j"])
    if found.returncode:
        raise ConfigError(f"squeue does not answer: {_one_line(found.stderr)}; run this where Slurm can be reached")
    rows = [line.split(maxsplit=1) for line in found.stdout.splitlines() if line.strip()]
    return {name.removeprefix(_PREFIX): job for job, name in rows if name.startswith(_PREFIX)}


def _cancel(jobs: Sequence[str], tool: Tool) -> None:
    if jobs:
        tool(["scancel", *jobs])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_LAST_LINE]


def _run(line: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Return how a tool of Slurm ended; raise ConfigError where there is none."""
    try:
        return subprocess.run(line, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise ConfigError(f"there is no {line[0]} here; run the sweep without slurm=true, or on a login node") from e
