"""Hold the process of a contestant, which stays loaded and runs during its turns only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from contestant import MARK, Row
from support.servers import descendants

from ollampi.mpiruntime.lifetime import die_with

_END_S = 20.0


class Worker:
    """The process of one contestant, seen from outside; `facts` are what it told when it was ready.

    Between turns it and all below it are stopped: a rank that waits looks for messages, which would cost the others.
    """

    def __init__(self, name: str, command: list[str], env: dict[str, str] | None = None) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=partial(die_with, os.getpid()),  # what is stopped sees no end of its input
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._replies = self._process.stdin, self._process.stdout
        self.facts: dict[str, Any] = self._reply()

    def measure(self, row: Row, seed: int) -> float:
        """Return the tokens per second of one turn."""
        self._signal(signal.SIGCONT)
        self._orders.write(json.dumps({"row": asdict(row), "seed": seed}) + "\n")
        self._orders.flush()
        return float(self._reply())

    def close(self) -> None:
        """End the process."""
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self._orders.write("null\n")
            self._orders.flush()
        with suppress(BrokenPipeError):
            self._orders.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()

    def _reply(self) -> Any:
        """Return the next line of the protocol; raise RuntimeError where the process ends instead."""
        for line in self._replies:
            if line.startswith(MARK):
                self._signal(signal.SIGSTOP)
                return json.loads(line.removeprefix(MARK))
            print(f"{self.name}: {line.rstrip()}", file=sys.stderr)
        self.close()
        raise RuntimeError(f"{self.name} ended with status {self._process.returncode}; its messages are above")

    def _signal(self, number: int) -> None:
        """Send a signal to the process and all below it."""
        for pid in (*descendants(self.pid), self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
