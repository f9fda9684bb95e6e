"""Do the long work of a rank beside its steps: one job after the other, in a thread of their own."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from ollampi.mpiruntime.errors import OllampiError

T = TypeVar("T")
GIVEN_UP = "the load was given up"
_LEAST_S, _MOST_S = 0.005, 0.02
_SWITCH_S = 0.00005  # for how long at most a job that runs Python holds up a step that wants to go on


def share_s(turn_s: float) -> float:
    """Return for how long a rank leaves its cores to jobs behind a turn of steps that took so long, in seconds."""
    return min(max(_LEAST_S, turn_s), _MOST_S)


class GivenUp(OllampiError):
    """A job was given up."""


@dataclass(eq=False)
class _Job:
    """Work and what is done with its result by the main thread; key: by which it can be given up."""

    key: int | None
    work: Callable[[], Any]
    then: Callable[[Any], None]
    is_given_up: bool = False


class Background:
    """The jobs of one rank; all but `pause` is for its main thread.

    A job calls `pause` wherever it has computed or read for a few milliseconds: it goes on there as soon as no step is
    being computed, for which the main thread is within `resting`. No step waits for a job. There is no thread without
    jobs: threads of its own, by which it may compute, would slow the steps down.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._current: _Job | None = None
        self._thread: threading.Thread | None = None
        self._ended: deque[tuple[_Job, Any, BaseException | None]] = deque()
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self._num_open = 0
        self._switch_s = sys.getswitchinterval()

    @property
    def busy(self) -> bool:
        """Return whether there are jobs whose end `look` has not seen."""
        return self._num_open > 0

    def put(
        self, work: Callable[[], T], then: Callable[[T], None] = lambda result: None, key: int | None = None
    ) -> None:
        """Have work done behind all that was put before; `look` calls `then` with what it returns."""
        with self._lock:
            self._num_open += 1
            self._jobs.append(_Job(key, work, then))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="beside steps", daemon=True)
                self._thread.start()

    def done(self, work: Callable[[], T], meanwhile: Callable[[], None]) -> T:
        """Return what work returns, or raise what it raises; `meanwhile` is called again and again until it is done."""
        found: list[Callable[[], T]] = []

        def held() -> Callable[[], T]:
            """Return what returns, or raises, what the work did."""
            try:
                result = work()
            except Exception as e:
                error = e
                return lambda: _raised(error)
            return lambda: result

        self.put(held, found.append)
        while not found:
            meanwhile()
            self.look()
        return found[0]()

    def look(self) -> None:
        """Take note of the jobs that have ended; raise what one of them raised."""
        while self._ended:
            job, result, error = self._ended.popleft()
            self._num_open -= 1
            if error is not None:
                raise error
            job.then(result)

    def give_up(self, key: int) -> None:
        """Have the jobs of a key raise GivenUp at the next `pause`, or when they would begin."""
        with self._lock:
            for job in [*self._jobs, *([self._current] if self._current else [])]:
                job.is_given_up |= job.key == key

    def close(self) -> None:
        """Give up all jobs with a key, and return when none is left, whose ends `look` sees."""
        with self._lock:
            keys = {job.key for job in [*self._jobs, *([self._current] if self._current else [])]}
            thread = self._thread
        for key in keys - {None}:
            self.give_up(key)  # type: ignore[arg-type]
        if thread is not None:
            thread.join()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Have jobs rest while the block computes a step."""
        self._may_go_on.clear()
        try:
            yield
        finally:
            self._may_go_on.set()

    def pause(self) -> None:
        """Return when no step is being computed; raise GivenUp where the job is not wanted any more. By a job."""
        self._may_go_on.wait()
        current = self._current
        if current is not None and current.is_given_up:
            raise GivenUp(GIVEN_UP)

    def _run(self) -> None:
        """Do jobs until there are none."""
        sys.setswitchinterval(_SWITCH_S)
        try:
            while (job := self._next()) is not None:
                self._do(job)
                del job  # and with it what its work held, before the next
        finally:
            sys.setswitchinterval(self._switch_s)

    def _next(self) -> _Job | None:
        """Return the next job, or None once this thread is to end."""
        with self._lock:
            self._current = self._jobs.popleft() if self._jobs else None
            if self._current is None:
                self._thread = None
            return self._current

    def _do(self, job: _Job) -> None:
        """Do one job, and keep what came of it for `look`."""
        result, error = None, None
        try:
            result = job.work()
        except BaseException as e:
            error = e
        job.work = _done
        self._ended.append((job, result, error))


def _done() -> None:
    """Stand for work that is done, and holds nothing."""


def _raised(error: Exception) -> NoReturn:
    """Raise an exception."""
    raise error
