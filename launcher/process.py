"""Act on signals, and say where a rank failed."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from ollampi.mpiruntime.log_files import in_files

_log = logging.getLogger(__name__)


def on_signals(handlers: dict[int, Callable[[], None]]) -> None:
    """Call the handler of each signal in the main thread, between two steps of the interpreter."""

    def act(number: int, _frame: FrameType | None) -> None:
        handlers[number]()

    for number in handlers:
        signal.signal(number, act)


def print_failure(rank: int) -> None:
    """Print the exception in flight with the rank that it happened on."""
    text = traceback.format_exc()
    lines = "".join(f"[rank {rank}] {line}\n" for line in text.splitlines())
    print(f"\nollampi: rank {rank} failed; ending all ranks\n{lines}", file=sys.stderr, flush=True)
    if in_files():
        _log.exception("rank %d failed; ending all ranks", rank)
