"""Exchange in a thread beside the one that computes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from ollampi.kernels.native import stay_alone

T = TypeVar("T")
Jobs = SimpleQueue[tuple[Callable[[], Any], bool, "Future[Any]"] | None]  # None: there will be no more


class ExchangeThread:
    """A thread that does one job after the other, in the order in which they came.

    It starts with the first job, and ends after its last one when it is closed, when nobody holds this object any more,
    or with the process. What it calls natively runs in it alone: a second pool of threads would take the cores from
    those that compute.
    """

    def __init__(self) -> None:
        self._jobs: Jobs = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._end = weakref.finalize(self, self._jobs.put, None)

    def start(self, job: Callable[[], T]) -> Callable[[], T]:
        """Return what waits for the job and returns what it returns, or raises what it raises.

        After a job that raised all later ones raise the same.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name="exchange", daemon=True)
            self._thread.start()
        outcome: Future[T] = Future()
        self._jobs.put((job, torch.is_inference_mode_enabled(), outcome))
        return outcome.result

    def close(self) -> None:
        """End the thread and wait for that; `start` must not be called any more."""
        self._end()
        if self._thread is not None:
            self._thread.join()


def _work(jobs: Jobs) -> None:
    """Do the jobs, each in the mode of the thread that asked for it. Holds nothing of who gives them."""
    stay_alone()
    failure: BaseException | None = None
    while (told := jobs.get()) is not None:
        job, inference, outcome = told
        try:
            if failure is not None:
                raise failure
            with torch.inference_mode(inference):
                outcome.set_result(job())
        except BaseException as e:
            failure = e
            outcome.set_exception(e)
        del told, job, outcome  # with their tensors, while this thread waits
