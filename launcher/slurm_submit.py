"""Submit a job that serves: check what can be checked first, and leave nothing half-started in the queue."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ollampi.launcher import endpoint
from ollampi.launcher.slurm_client import SlurmError, cancel, queue, submit
from ollampi.launcher.slurm_logs import last_line, log_file
from ollampi.launcher.slurm_render import COMMENT, Job, output_of
from ollampi.launcher.slurm_wait import EndedEarlyError, LateError, NeverStartsError, stamps, wait_ready
from ollampi.launcher.words import one_line
from ollampi.mpiruntime.errors import ConfigError, OllampiError

_SAYS_WHY = re.compile(r"ollampi: .*[^:]")  # behind it may be more of srun or mpirun
Say = Callable[[str], None]


def submit_job(
    job: Job,
    script: str,
    overrides: Sequence[str],
    environ: Mapping[str, str],
    say: Say,
    answer: Say,
    wait: bool = False,
    timeout_s: float | None = None,
) -> None:
    """Submit a job: `answer` gets its id and, with `wait`, the URLs of its servers; `say` gets what happens meanwhile.

    environ: what the job gets. Raise ConfigError before anything is submitted, SlurmError where Slurm refuses or a
    server ends before it was ready; the other replicas are then cancelled.
    """
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise ConfigError(f"--wait-timeout is {timeout_s:g}; it must be a number of seconds above 0")
    _check_settings(overrides, environ)
    _check_output(output_of(job))
    where = endpoint.folder(environ)
    endpoint.prepare(where)
    before = stamps(where)
    job_id, warnings = submit(script, environ, f"{COMMENT}:{secrets.token_hex(8)}")
    for warning in warnings:
        say(warning)
    answer(job_id)
    if wait:
        job_ids = [f"{job_id}_{number}" for number in range(job.replicas or 0)] or [job_id]
        for url in _urls(job_id, job_ids, where, before, say, timeout_s):
            answer(url)


def _urls(
    job_id: str,
    job_ids: Sequence[str],
    where: Path,
    before: dict[str, tuple[int, int]],
    say: Say,
    timeout_s: float | None,
) -> list[str]:
    """Return the URLs of all servers of a job, once they are ready."""
    stays = f"job {job_id} stays; `ollampi slurm stop {job_id}` ends it"
    try:
        found = wait_ready(job_ids, where, before, lambda: queue(job_id), say, timeout_s)
    except KeyboardInterrupt:
        say(stays)
        raise
    except LateError as error:
        raise SlurmError(f"{error}; {stays}") from error
    except NeverStartsError as error:
        cancel([job_id])
        raise SlurmError(f"{error}; it is cancelled") from error
    except EndedEarlyError as error:
        with suppress(OllampiError):  # most often it is over already
            cancel([job_id])
        raise SlurmError(f"{error}{_last_words(error.job_id)}") from error
    for each in found:
        key = f"; its key is the token in {endpoint.path_of(where, each.job_id)}" if each.token else ""
        say(f"job {each.job_id} is ready{key}")
    return [each.url for each in found]


def _check_settings(overrides: Sequence[str], environ: Mapping[str, str]) -> None:
    """Raise ConfigError where the server would refuse its settings.

    The whole configuration is composed by another program, as for `config show`: it imports much.
    """
    line = [sys.executable, "-m", "ollampi.launcher.config_show", *overrides]
    done = subprocess.run(line, env=dict(environ), capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["the settings cannot be checked"]
        raise ConfigError(one_line(lines[-1].removeprefix("Error: ")))


def _check_output(output: str) -> None:
    """Raise ConfigError where the job could not write its output: Slurm would end it without a word."""
    folder = Path(os.path.dirname(output) or ".")
    if "%" in str(folder) or (os.path.exists(output) and os.access(output, os.W_OK)):
        return
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(
            f"--output is {output!r}, but {str(folder)!r} is no folder that can be written; make it or name another"
        )


def _last_words(job_id: str) -> str:
    """Return the line of what a job wrote that says most likely why it ended, and where the others are."""
    try:
        path = log_file(job_id, None, None)
    except OllampiError:
        return f"; `ollampi slurm logs {job_id}` prints what it wrote"
    last = one_line(last_line(path, _SAYS_WHY) or last_line(path)).removeprefix("ollampi: ").removeprefix("Error: ")
    return f": {last}; {path} has it all" if last else f"; it wrote nothing to {path}"
