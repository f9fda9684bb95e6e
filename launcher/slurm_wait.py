"""Wait until the servers of a job that was just submitted have written their endpoint files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ollampi.launcher.endpoint import Endpoint, path_of, read, read_all
from ollampi.launcher.slurm_client import Queued, SlurmError
from ollampi.launcher.slurm_refused import is_for_ever, reason_words
from ollampi.launcher.words import one_line

_LOOK_S = 0.5  # between two looks for files
_ASK_S = 3.0  # between two questions to Slurm's controller, which many others ask too
_MISSED = 3  # times that a job may be missing from the queue before it counts as gone
Stamps = dict[str, tuple[int, int]]


class EndedEarlyError(SlurmError):
    """A job ended before its server was ready."""

    def __init__(self, job_id: str, state: str) -> None:
        super().__init__(f"job {job_id} ended before its server was ready: {one_line(state)}")
        self.job_id = job_id


class NeverStartsError(SlurmError):
    """A job waits for what never comes."""


class LateError(SlurmError):
    """The servers of a job were not ready in time; it goes on."""


def stamps(where: Path) -> Stamps:
    """Return the files that are there before a job: Slurm may give an id again, whose file somebody left."""
    found = {job_id: _stamp(path_of(where, job_id)) for job_id in read_all(where)[0]}
    return {job_id: stamp for job_id, stamp in found.items() if stamp is not None}


def wait_ready(
    job_ids: Sequence[str],
    where: Path,
    before: Stamps,
    look: Callable[[], Iterable[Queued]],
    say: Callable[[str], None],
    timeout_s: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[Endpoint]:
    """Return the endpoints of jobs in their order, once all are ready.

    where: the folder of the files; before: what `stamps` returned before the jobs were submitted; look: asks the queue;
    say: gets each change. Raise EndedEarlyError for a job that ends, NeverStartsError, LateError after timeout_s.
    """
    watch, begin = _Watch(job_ids, say), clock()
    asked = begin - _ASK_S
    while True:
        now = clock()
        ready = {job_id: found for job_id in job_ids if (found := _new(where, job_id, before)) is not None}
        if len(ready) == len(job_ids):
            return [ready[job_id] for job_id in job_ids]
        if now - asked >= _ASK_S:
            watch.note([job_id for job_id in job_ids if job_id not in ready], look)
            asked = now
        if timeout_s is not None and now - begin >= timeout_s:
            late = [job_id for job_id in job_ids if job_id not in ready]
            states = ", ".join(f"{job_id} is {watch.said.get(job_id, 'not seen')}" for job_id in late[:3])
            raise LateError(f"after {timeout_s:g} s {len(late)} of {len(job_ids)} servers are not ready: {states}")
        sleep(_LOOK_S)


class _Watch:
    """What the queue said of jobs, and how often each was missing there."""

    def __init__(self, job_ids: Sequence[str], say: Callable[[str], None]) -> None:
        self._say, self._is_away = say, False
        self.said: dict[str, str] = {}
        self._missed = dict.fromkeys(job_ids, 0)

    def note(self, job_ids: Sequence[str], look: Callable[[], Iterable[Queued]]) -> None:
        """Ask the queue and tell what changed; raise EndedEarlyError, or NeverStartsError at the second time."""
        try:
            jobs = {job.job_id: job for job in look()}
        except SlurmError as error:  # the job goes on without Slurm's controller
            if not self._is_away:
                self._say(f"{error}; still waiting")
            self._is_away = True
            return
        self._is_away = False
        for job_id in job_ids:
            job = jobs.get(job_id)
            self._missed[job_id] = 0 if job is not None else self._missed[job_id] + 1
            if job is None and self._missed[job_id] < _MISSED:
                continue
            if job is None or job.has_ended:
                raise EndedEarlyError(job_id, "it is in the queue no more" if job is None else job.state)
            self._tell(job)

    def _tell(self, job: Queued) -> None:
        words = one_line(f"{job.state} ({reason_words(job.reason)})" if job.is_pending else job.state)
        if self.said.get(job.job_id) != words:
            self._say(f"job {job.job_id} is {words}")
        elif job.is_pending and is_for_ever(job.reason):
            why = one_line(reason_words(job.reason))
            raise NeverStartsError(f"job {job.job_id} would wait for ever: {why}; ask for less, or another --partition")
        self.said[job.job_id] = words


def _new(where: Path, job_id: str, before: Stamps) -> Endpoint | None:
    """Return the endpoint of a job unless its file is one of those before."""
    stamp = _stamp(path_of(where, job_id))
    return None if stamp is None or before.get(job_id) == stamp else read(where, job_id)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
