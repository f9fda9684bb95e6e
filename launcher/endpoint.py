"""Tell where the server of a Slurm job answers: a file for each job, in a folder that all hosts see.

The job writes the file when it is ready and removes it at its end. It holds the key of the server's API, so only its
owner can read it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ollampi.launcher.home import home
from ollampi.mpiruntime.errors import ConfigError

VARIABLE = "OLLAMPI_ENDPOINTS"
_JOB_ID = re.compile(r"[0-9]{1,18}(_[0-9]{1,18})?")  # 12, or 12_0 for a task of an array
_LONGEST = 1 << 20  # bytes of a file


@dataclass(frozen=True)
class Endpoint:
    """A server in a Slurm job.

    url: where clients on the cluster's network find it; job_id: 12, or 12_0 for a task of an array; name: of the job;
    token: the key that its API takes; host, port: where the HTTP process listens; ranks: how many; started: when it was
    ready (RFC 3339); logs: the folder with a log for each rank, "" for none.
    """

    url: str
    job_id: str
    name: str
    token: str
    host: str
    port: int
    ranks: int
    model: str
    started: str
    logs: str = ""

    def __repr__(self) -> str:
        """Return what it is without the token, which no log and no traceback shall hold."""
        return f"Endpoint({self.url!r}, job_id={self.job_id!r})"


def folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of the files: $OLLAMPI_ENDPOINTS, else .ollampi/endpoints in the user's home.

    Raise ConfigError for a user without a home.
    """
    if given := environ.get(VARIABLE):
        return Path(os.path.abspath(os.path.expanduser(given)))
    own = home(environ)
    if own is None:
        raise ConfigError(f"this user has no home folder: give a folder that all hosts see as {VARIABLE}")
    return own / ".ollampi" / "endpoints"


def own_job_id(environ: Mapping[str, str]) -> str | None:
    """Return the id of the job that this process belongs to, 12_0 in a task of an array; None outside Slurm."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")


def check_job_id(text: str) -> str:
    """Return the id of a job; raise ConfigError for what is none."""
    if not _JOB_ID.fullmatch(text):
        raise ConfigError(f"{text!r} is no id of a job; give a number, or for one replica of an array 12_0")
    return text


def path_of(where: Path, job_id: str) -> Path:
    """Return the path of a job's file; raise ConfigError for what is no id."""
    return where / f"{check_job_id(job_id)}.json"


def rank_logs(where: Path, job_id: str) -> Path:
    """Return the folder for the ranks' logs of a job that writes its output to `where`, unless a setting names one."""
    return where / f"ollampi-{check_job_id(job_id)}.logs"


def prepare(where: Path) -> None:
    """Make the folder, for its owner alone; raise ConfigError where it cannot be written."""
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(where, os.W_OK | os.X_OK):
            raise PermissionError(0, "no right to write")
    except OSError as error:
        raise _not_written(where, error) from error


def write(endpoint: Endpoint, where: Path) -> Path:
    """Write a job's file and return its path; a reader finds the old file or the whole new one.

    Raise ConfigError where it cannot be written.
    """
    path = path_of(where, endpoint.job_id)
    prepare(where)
    temporary = None
    try:
        number, temporary = tempfile.mkstemp(dir=where, prefix=f".{endpoint.job_id}.")  # mode 0600
        with open(number, "w", encoding="utf-8") as file:
            json.dump(asdict(endpoint), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(number)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise _not_written(where, error) from error
    return path


def read(where: Path, job_id: str) -> Endpoint | None:
    """Return what a job's file says, None where there is no file; raise ConfigError for one that is not such a file."""
    path = path_of(where, job_id)
    try:
        found = json.loads(own_text(path, _LONGEST))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise ConfigError(f"the endpoint file {path} cannot be read ({why}); remove it") from error
    kinds = {each.name: int if each.name in ("port", "ranks") else str for each in fields(Endpoint)}
    if not isinstance(found, dict):
        found = {}
    held = {"logs": "", **{name: value for name, value in found.items() if name in kinds}}
    wrong = [name for name, kind in kinds.items() if type(held.get(name)) is not kind]
    if wrong or held["job_id"] != job_id:
        raise ConfigError(f"the endpoint file {path} has no usable {', '.join(wrong) or 'job_id'}; remove it")
    return Endpoint(**held)


def own_text(path: Path, longest: int) -> str:
    """Return what is in a file of this user's; raise OSError where there is none that ends, ValueError for no text.

    longest: bytes. Another's file is not believed, and a FIFO or a device would be read for ever.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is no plain file")
        if status.st_uid not in (0, os.getuid()):
            raise OSError(0, "it is another user's")
        if status.st_size > longest:
            raise OSError(0, f"it has more than {longest} bytes")
        return os.read(number, longest).decode()
    finally:
        os.close(number)


def read_all(where: Path) -> tuple[dict[str, Endpoint], list[str]]:
    """Return the servers by job id, in the order of their ids, and what is wrong with files that cannot be used."""
    try:
        names = os.listdir(where)  # which also has NFS look for new files
    except OSError:
        names = []
    ids = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    found: dict[str, Endpoint] = {}
    wrong = []
    for job_id in sorted(filter(_JOB_ID.fullmatch, ids), key=lambda each: tuple(map(int, each.split("_")))):
        try:
            endpoint = read(where, job_id)
        except ConfigError as error:
            wrong.append(str(error))
        else:
            found |= {job_id: endpoint} if endpoint is not None else {}
    return found, wrong


def remove(where: Path, job_id: str) -> None:
    """Remove a job's file, which need not be there; raise ConfigError where that is not allowed."""
    path = path_of(where, job_id)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"the endpoint file {path} cannot be removed: {error.strerror}; remove it") from error


def _not_written(where: Path, error: OSError) -> ConfigError:
    why = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
    return ConfigError(
        f"no endpoint file can be written to {where}: {why}; give a folder that all hosts see as {VARIABLE}"
    )
