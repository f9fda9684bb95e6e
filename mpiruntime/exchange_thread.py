"""Exchange in a thread beside the one that computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from ollampi.kernels.native import stay_alone

T = TypeVar("T")


class ExchangeThread:
    """A thread that does one job after the other, in the order in which they came; it dies with the process.

    It starts with the first job. What it calls natively runs in it alone: a second pool of threads would take the cores
    from those that compute.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], bool, Future[Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, job: Callable[[], T]) -> Callable[[], T]:
        """Return what waits for the job and returns what it returns, or raises what it raises.

        After a job that raised all later ones raise the same.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)
            self._thread.start()
        outcome: Future[T] = Future()
        self._jobs.put((job, torch.is_inference_mode_enabled(), outcome))
        return outcome.result

    def stop(self) -> None:
        """End the thread, where there is one, when it has done its jobs."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        """Do the jobs, each in the mode of the thread that asked for it."""
        stay_alone()
        failure: BaseException | None = None
        while (taken := self._jobs.get()) is not None:
            job, inference, outcome = taken
            try:
                if failure is not None:
                    raise failure
                with torch.inference_mode(inference):
                    outcome.set_result(job())
            except BaseException as e:
                failure = e
                outcome.set_exception(e)
            del taken, job, outcome  # with their tensors, while this thread waits
