"""Pass on what a program writes to stderr, and keep the beginning to say it again."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import IO

_KEPT_BYTES = 64 << 10
_SAID_LINES = 30
_OURS = "ollampi: "


class Heard:
    """A thread reads `pipe` to its end and writes it to this process's stderr."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def first(self, timeout_s: float) -> str:
        """Return what was written first, from the first line of ours on; waits so long for the end.

        A process that outlives the program may keep the pipe open.
        """
        self._thread.join(timeout_s)
        lines = [line.rpartition("\r")[2] for line in bytes(self._kept).decode(errors="replace").splitlines()]
        ours = next((place for place, line in enumerate(lines) if line.startswith(_OURS)), None)
        said = lines[-_SAID_LINES:] if ours is None else lines[ours : ours + _SAID_LINES]
        return "\n".join(said).strip()

    def _read(self) -> None:
        with self._pipe:
            while data := os.read(self._pipe.fileno(), 65536):
                self._kept += data[: max(0, _KEPT_BYTES - len(self._kept))]
                with suppress(OSError, ValueError, AttributeError):  # our stderr is closed
                    sys.stderr.buffer.write(data)
                    sys.stderr.flush()
