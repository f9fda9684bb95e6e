"""Render a model's own chat template (Jinja) in a helper process with limits on its time and memory."""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import weakref
from typing import Any

from ollampi.api.template_worker import CPU_S, GROWTH_BYTES, MAX_OUTPUT_CHARS
from ollampi.mpiruntime import wire
from ollampi.mpiruntime.errors import ModelError, RequestError

NUM_HELPERS = 2
WALL_S = 30.0  # for CPU_S of work; a helper that takes longer is stopped or starved
_REMEDY = "send less, or correct the template in the model folder"
_FAILURES = {
    "syntax": "the model's chat template cannot be compiled; correct it in the model folder",
    "memory": f"the model's chat template needed more than {GROWTH_BYTES >> 20} MB for these messages; {_REMEDY}",
    "size": f"the model's chat template wrote more than {MAX_OUTPUT_CHARS} characters for these messages; {_REMEDY}",
}


class ChatTemplates:
    """Renders chat templates; its helper processes start with the first requests and end with it. Thread-safe."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[_Helper | None] = queue.LifoQueue()
        for _ in range(NUM_HELPERS):
            self._idle.put(None)

    def render(self, source: str, messages: list[dict[str, Any]], tools: list[Any], **names: object) -> str:
        """Return the prompt text; raise RequestError where the template refuses, ModelError where it fails."""
        values = {
            "add_generation_prompt": True,
            "documents": None,
            **names,
            "messages": messages,
            "tools": tools or None,
        }
        request = {"source": source, "values": json.dumps(values, ensure_ascii=False)}
        answer = self._ask(request) or self._ask(request)  # nobody's template kills two helpers from outside
        if answer is None:
            raise ModelError(
                "the process that renders chat templates was killed twice; see what else runs on this host"
            )
        kind, text = answer["kind"], answer["body"].decode()
        if kind == "text":
            return str(text)
        if kind == "refused":
            raise RequestError(f"the model's chat template refuses these messages: {text}")
        raise ModelError(_FAILURES.get(kind) or f"the model's chat template failed: {text}; correct the template")

    def _ask(self, request: wire.Message) -> wire.Message | None:
        """Return a helper's answer, or None where it died for a reason of its own."""
        helper = self._idle.get()
        try:
            if helper is None or not helper.alive:
                helper = _Helper()
            return helper.ask(request)
        finally:
            self._idle.put(helper)


class _Helper:
    """One helper process; it ends with this object, or when its socket closes because this process died."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(WALL_S)
        with theirs:
            command = [sys.executable, "-m", "ollampi.api.template_worker"]
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
        self._end = weakref.finalize(self, _end, self._process, self._connection)

    @property
    def alive(self) -> bool:
        """Return whether the process can be asked."""
        return self._process.poll() is None

    def ask(self, request: wire.Message) -> wire.Message | None:
        """Return the process's answer, None where it died without one; raise ModelError where it took too long."""
        try:
            wire.send(self._connection, request)
            return wire.receive(self._connection)
        except wire.Closed as e:
            if self._end() != -signal.SIGPROF:
                return None
            did = f"used more than {CPU_S * 1000:.0f} ms of CPU time for these messages"
            raise ModelError(f"the model's chat template {did}; {_REMEDY}") from e


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> int:
    """End the process and return its exit status; one that is dying already keeps its own."""
    connection.close()
    process.kill()
    return process.wait()
