"""Find and read what a Slurm job wrote: its output, and the log of each rank."""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ollampi.launcher.endpoint import Endpoint, rank_logs
from ollampi.launcher.slurm_client import SlurmError, described
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.log_files import parts

_PIECE = 1 << 16
_ANY = re.compile(".+")
_LOOK_S, _ASK_S = 0.5, 5.0
_DEFAULT = "ollampi-{}.log"  # what `slurm render` has, for a job that Slurm has forgotten


def log_file(job_id: str, rank: int | None, endpoint: Endpoint | None) -> Path:
    """Return the file with a job's output, or with the log of one of its ranks; it need not be there.

    endpoint: the job's, None where it has no file. Raise SlurmError where nothing tells where the job wrote to,
    ConfigError for a rank that it does not have.
    """
    if rank is not None:
        if rank < 0 or (endpoint is not None and rank >= endpoint.ranks):
            known = f"0 to {endpoint.ranks - 1}" if endpoint is not None else "0 or more"
            raise ConfigError(f"--rank is {rank}; the ranks of job {job_id} are {known}")
        name = f"{parts(rank)['']}.log"
        if endpoint is not None and endpoint.logs:
            return Path(endpoint.logs) / name
        return rank_logs(Path(_told(job_id).get("WorkDir") or "."), job_id) / name
    forgotten = Path(_DEFAULT.format(job_id))
    try:
        told = described(job_id)
    except SlurmError:
        if forgotten.is_file():
            return forgotten
        raise
    if "ArrayTaskId" in told and "_" not in job_id:
        raise ConfigError(f"job {job_id} has replicas; name one, such as {job_id}_0")
    path = told.get("StdOut", "")
    if not path or path == "(null)":
        raise SlurmError(
            f"Slurm does not say where job {job_id} writes to; look for {forgotten} where it was submitted"
        )
    return Path(told.get("WorkDir") or ".") / expanded(path, told)


def _told(job_id: str) -> dict[str, str]:
    """Return what Slurm knows of a job, nothing where it has forgotten it."""
    try:
        return described(job_id)
    except SlurmError:
        return {}


def expanded(path: str, told: Mapping[str, str]) -> str:
    """Return the path of a job's output with what its %-signs stand for, where Slurm left that to its readers.

    told: as `described` returns.
    """
    job_id = told.get("JobId", "")
    values = {
        "j": job_id,
        "A": told.get("ArrayJobId", job_id),
        "a": told.get("ArrayTaskId", ""),
        "x": told.get("JobName", ""),
        "u": told.get("UserId", "").partition("(")[0],
        "N": told.get("BatchHost", ""),
        "%": "%",
    }

    def value(found: re.Match[str]) -> str:
        text = values.get(found[2])
        return found[0] if text is None else text.rjust(int(found[1][:2] or 0), "0")

    return re.sub(r"%([0-9]*)([A-Za-z%])", value, path)


def follow(
    path: Path,
    goes_on: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[str]:
    """Yield what is and comes to be in a file, which need not be there yet, until the job that writes it is over.

    goes_on: asks whether it is not; it is asked every few seconds. A file that was cut or replaced is read anew.
    """
    at, node, asked, is_last = 0, 0, clock(), False
    decoder = _utf8()
    while True:
        try:
            with path.open("rb") as file:
                found = _node_and_size(path)
                at = 0 if found[0] != node or found[1] < at else at
                node = found[0]
                file.seek(at)
                while piece := file.read(_PIECE):
                    at += len(piece)
                    yield decoder.decode(piece)
        except FileNotFoundError:
            pass
        if is_last:
            return
        if clock() - asked >= _ASK_S:
            asked, is_last = clock(), not goes_on()
            continue  # what came meanwhile is read once more
        sleep(_LOOK_S)


def whole(path: Path) -> Iterator[str]:
    """Yield what is in a file; raise ConfigError where it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def last_line(path: Path, form: re.Pattern[str] = _ANY) -> str:
    """Return the last line near the end of a file that is of a form, by default not empty; "" where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _PIECE))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if form.fullmatch(line.strip())), "")


def _utf8() -> codecs.IncrementalDecoder:
    """Return what decodes pieces that may end within a character."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def _node_and_size(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_size
