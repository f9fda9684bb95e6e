"""Watch work that goes on in a thread, as Ollama's progress lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from ollampi.api.registry.transfer import Cancel

T = TypeVar("T")
Line = dict[str, Any]
TICK_S = 0.1
REPEAT_S = 1.0  # a line comes again when nothing changed: so a client that went away is noticed
_JOIN_S = 10.0


class Meter:
    """How many bytes of a blob are done; set by one thread, read by another."""

    def __init__(self) -> None:
        self.completed = 0


def blob_line(verb: str, digest: str, size: int, completed: int) -> Line:
    """Return the progress of a blob as Ollama writes it: `completed` is left out while it is 0."""
    line: Line = {"status": f"{verb} {digest.removeprefix('sha256:')[:12]}", "digest": digest, "total": size}
    return line | ({"completed": completed} if completed else {})


def watched(work: Callable[[], T], line: Callable[[], Line], cancel: Cancel) -> Generator[Line, None, T]:
    """Return what `work` returns or raises in a thread; yield `line()` at the start, when it changes, and at the end.

    A generator that is closed early ends the transfer.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        """Do the work and note how it ended."""
        try:
            outcome.append(work())
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=run, name="transfer", daemon=True)
    thread.start()
    try:
        last = line()
        yield last
        told_at = time.monotonic()
        while thread.is_alive():
            thread.join(TICK_S)
            now = line()
            if now != last or time.monotonic() - told_at > REPEAT_S:
                last, told_at = now, time.monotonic()
                yield now
    finally:
        if thread.is_alive():
            cancel()
            thread.join(_JOIN_S)
    if failure:
        raise failure[0]
    return outcome[0]
