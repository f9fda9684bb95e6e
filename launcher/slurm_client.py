"""Talk to Slurm by its programs: submit a script, look at the queue, send signals, cancel.

Programs get lists of words, never a line for a shell, and a script on stdin.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ollampi.launcher.endpoint import check_job_id
from ollampi.launcher.slurm_refused import refusal, warnings
from ollampi.mpiruntime.errors import OllampiError

_PATIENCE_S = 120.0  # sbatch itself tries for a while to reach a controller that is away
_NOTICING_S = 15.0  # for the answer of an sbatch that was under way at Ctrl-C
_ID = re.compile(r"(\d{1,18})(;[\w.-]+)?", re.ASCII)  # of --parsable: 12, or 12;cluster
# job, state, elapsed, limit, start, nodes, reason, comment, name: what users write comes last
_FORMAT = "%i|%T|%M|%l|%S|%N|%r|%k|%j"
_FIELDS = 7  # of it that each line has
_UNSURE = ("timed out", "zero bytes")  # in a refusal that the controller may not know of
_ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
        *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)


class SlurmError(OllampiError):
    """A program of Slurm refused, did not answer, or is not there."""


@dataclass(frozen=True)
class Queued:
    """A job, or a task of an array, in Slurm's words; elapsed, limit and start as squeue prints them."""

    job_id: str
    state: str
    elapsed: str
    limit: str
    start: str
    nodes: str
    reason: str
    comment: str
    name: str

    @property
    def is_pending(self) -> bool:
        """Return whether it has no nodes yet."""
        return self.state == "PENDING"

    @property
    def has_ended(self) -> bool:
        """Return whether it is over; a state that nobody knows is not."""
        return self.state in _ENDED


def submit(script: str, environ: Mapping[str, str], comment: str) -> tuple[str, list[str]]:
    """Submit a script and return the job's id and what sbatch warns of; raise SlurmError where there is no job.

    comment: one that no other job has. By it a job is found whose id never came, as from a controller that is slow.
    Where Ctrl-C comes meanwhile, a job that was made all the same is cancelled.
    """
    line = ["sbatch", "--parsable", f"--comment={comment}"]
    process = _start(line, environ)
    try:
        said, told = process.communicate(os.fsencode(script), _PATIENCE_S)
    except subprocess.TimeoutExpired:
        _end(process)
        silence = _silent("sbatch", "the job may be in the queue: `ollampi slurm status` lists yours")
        return _made_all_the_same(comment, SlurmError(silence))
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired):
            said, told = process.communicate(timeout=_NOTICING_S)
            if (made := _job_id(said)) is not None:
                cancel([made])
        _end(process)
        raise
    made = _job_id(said) if process.returncode == 0 else None
    if made is not None:
        return made, warnings("sbatch", told.decode(errors="replace"))
    text = f"sbatch named no job but said {said.decode(errors='replace').strip()!r}; `ollampi slurm status` lists yours"
    if process.returncode:
        text = refusal("sbatch", told.decode(errors="replace"), process.returncode)
        if not any(word in text.lower() for word in _UNSURE):
            raise SlurmError(text)
    return _made_all_the_same(comment, SlurmError(text))


def _made_all_the_same(comment: str, trouble: SlurmError) -> tuple[str, list[str]]:
    """Return the job with a comment and what went wrong, as `submit` does; raise that where there is no such job."""
    try:
        found = [job.job_id.split("_")[0] for job in queue() if job.comment == comment]
    except SlurmError:
        found = []
    if not found:
        raise trouble
    return found[0], [f"{trouble}; the job is in the queue: {found[0]}"]


def queue(job_id: str | None = None) -> list[Queued]:
    """Return this user's jobs that are not over, or all that Slurm knows of one job, each task of an array for itself.

    Raise SlurmError where Slurm does not answer. What squeue writes beside jobs is left out.
    """
    line = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--format={_FORMAT}"]
    if job_id is not None:
        line += ["--states=all", f"--jobs={check_job_id(job_id).split('_')[0]}"]
    try:
        said = call(line)
    except SlurmError as error:
        if job_id is not None and "invalid job id" in str(error).lower():  # Slurm forgets jobs that are over
            return []
        raise
    found = [job for text in said.splitlines() if (job := _queued(text)) is not None]
    return [job for job in found if job_id is None or belongs(job.job_id, job_id)]


def belongs(job_id: str, asked: str) -> bool:
    """Return whether a job is the one asked for, or a task of it."""
    return job_id == asked or job_id.startswith(f"{asked}_")


def drain(job_id: str) -> None:
    """Have the server of a job finish what runs and leave; raise SlurmError."""
    # to the batch shell alone, which is the supervisor: ranks hear of it from there
    call(["scancel", "--batch", "--signal=USR1", check_job_id(job_id)])


def cancel(job_ids: Sequence[str]) -> None:
    """End jobs, or take them out of the queue; raise SlurmError."""
    if job_ids:
        call(["scancel", *map(check_job_id, job_ids)])


def described(job_id: str) -> dict[str, str]:
    """Return what Slurm knows of a job that is not long over, by Slurm's names; raise SlurmError.

    Values with blanks are whole where they have lines of their own, as paths do, and for the name.
    """
    found: dict[str, str] = {}
    try:
        shown = call(["scontrol", "show", "job", check_job_id(job_id)])
    except SlurmError as error:
        if str(error) != refusal("scontrol", "", 1):
            raise
        # without a word: of a task that its array does not have
        raise SlurmError(f"Slurm knows no job {job_id}; `ollampi slurm status` lists yours") from None
    for text in shown.splitlines():
        if not text.strip():
            break  # of several tasks the first
        pairs = [pair.partition("=") for pair in text.split()]
        found |= {name: value for name, equals, value in pairs if equals and name not in found}
        name, _, value = text.strip().partition("=")
        if name in ("StdOut", "WorkDir"):
            found[name] = value
        elif name == "JobId":
            found["JobName"] = value.partition(" JobName=")[2]
    return found


def call(line: Sequence[str]) -> str:
    """Return what a program of Slurm prints; raise SlurmError where it refuses, is silent or is not there."""
    defaults = ("SQUEUE_", "SCANCEL_", "SCONTROL_")  # a user's own filters and formats
    process = _start(line, {name: value for name, value in os.environ.items() if not name.startswith(defaults)})
    try:
        said, told = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise SlurmError(_silent(line[0], "try again when Slurm's controller answers")) from None
    finally:
        _end(process)
    _check(line, process.returncode, told)
    return said.decode(errors="replace")


def _start(line: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program that Ctrl-C does not reach: it would leave the answer open."""
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, env=environ, start_new_session=True)
    except OSError as error:
        raise SlurmError(
            f"the program {line[0]} cannot be started here ({error.strerror}): log in to a host with Slurm's programs,"
            " or put their folder into PATH; `ollampi slurm render` prints the script without them"
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program that may still run, and close its pipes."""
    if process.poll() is None:
        process.kill()
    with process:
        pass


def _check(line: Sequence[str], status: int, told: bytes) -> None:
    if status:
        raise SlurmError(refusal(line[0], told.decode(errors="replace"), status))


def _silent(program: str, remedy: str) -> str:
    return (
        f"{program} has not answered for {_PATIENCE_S:g} s and was ended; {remedy}; `scontrol ping` shows Slurm's state"
    )


def _job_id(said: bytes) -> str | None:
    """Return the id that sbatch printed, which may have a site's own lines before it."""
    found = [match[1] for text in said.decode(errors="replace").splitlines() if (match := _ID.fullmatch(text.strip()))]
    return found[-1] if found else None


def _queued(text: str) -> Queued | None:
    """Return the job of a line of squeue; None for what is no such line."""
    parts = [part.strip() for part in text.split("|")]
    if len(parts) < _FIELDS or not re.fullmatch(r"\d{1,18}(_(\d{1,18}|\[.*\]))?", parts[0], re.ASCII):
        return None
    job_id, state, elapsed, limit, start, nodes, reason, *written = parts
    return Queued(job_id, state, elapsed, limit, start, nodes, reason, "".join(written[:1]), "|".join(written[1:]))
