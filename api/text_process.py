"""Have texts turned into token ids by processes of their own: making and asking a tokenizer holds Python's lock."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ollampi.api.text_encoder import Piece, facts_of
from ollampi.mpiruntime import wire
from ollampi.mpiruntime.errors import ModelError

MAX_IDLE_CONNECTIONS = 4
END_S = 5.0
_GONE = "the process that reads the model's texts ended; send the request again, and see what else runs on this host"


class TextProcess:
    """Makes the encoders of models, each in a process of its own. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forge: _Forge | None = None

    def start(self) -> None:
        """Start what the processes of models are copied from, which the first encoder does otherwise."""
        with self._lock:
            self._running()

    def encoder(self, path: Path, file: str) -> FarEncoder:
        """Return the encoder of the model that is a folder or a GGUF file; raise ModelError.

        file: what its tokenizer is read from, for messages.
        """
        control, forge = self._process()
        try:
            facts = _asked(control, {"path": os.path.abspath(path), "file": file})
            return FarEncoder(control, facts, forge)
        except BaseException:
            control.close()
            raise

    def summary(self, path: Path, file: str) -> dict[str, Any]:
        """Return the short parts of the content of a tokenizer, which need not be usable; raise ModelError."""
        control, _ = self._process()
        with control:
            answer = _asked(control, {"path": os.path.abspath(path), "file": file, "summary": True})
            found: dict[str, Any] = json.loads(answer["summary"])
            return found

    def _process(self) -> tuple[socket.socket, _Forge]:
        """Return the socket of a new process, and what it is copied from."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            forge = self._running()
            if not forge.take(theirs):
                self._forge = forge = _Forge()
                forge.take(theirs)  # nobody ends it twice from outside
        return ours, forge

    def _running(self) -> _Forge:
        if self._forge is None or not self._forge.alive:
            self._forge = _Forge()
        return self._forge


class _Forge:
    """The process that those of models are copied from; they end with this object, or when this process dies."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ollampi.api.text_worker"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},  # else a long text holds up short ones
            )
        weakref.finalize(self, _end, self._process, self._socket)

    @property
    def alive(self) -> bool:
        """Return whether the process can be asked."""
        return self._process.poll() is None

    def take(self, model: socket.socket) -> bool:
        """Hand a socket to a new process; return whether the process is there to do it."""
        return _handed(self._socket, model)


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    """Have the process end, which ends the others before; those of one that does not end with it."""
    control.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class FarEncoder:
    """The encoder in the process of a model, which ends with this object. Thread-safe: nobody waits for another."""

    def __init__(self, control: socket.socket, facts: wire.Message, forge: _Forge) -> None:
        self.facts = facts_of(facts)
        self._forge = forge  # whose end would be this process', too
        self._socket = control
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()  # of control and idle
        weakref.finalize(self, _close, control, self._idle)

    @property
    def alive(self) -> bool:
        """Return whether the process is there."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True  # it says nothing more, and its end would be told
        except OSError:
            return False

    def encode(self, pieces: Sequence[Piece], behind: bool) -> list[int]:
        """Return the ids of texts that follow each other, each read by itself; raise ModelError."""
        told = [[_raw(text), is_plain] for text, is_plain in pieces]
        ids = array("i")
        ids.frombytes(self._ask({"pieces": told, "behind": behind})["ids"])
        return ids.tolist()

    def becomes_special(self, text: str) -> bool:
        """Return whether text without special tokens would get their ids all the same; raise ModelError."""
        return bool(self._ask({"sly": _raw(text)})["found"])

    def token_id(self, text: str) -> int | None:
        """Return the id of the token with this text, None where there is none; raise ModelError."""
        found: int | None = self._ask({"token": _raw(text)})["id"]
        return found

    def _ask(self, request: wire.Message) -> wire.Message:
        """Return the answer to a question; raise ModelError."""
        connection = self._connection()
        try:
            answer = _asked(connection, request)
        except BaseException:
            connection.close()  # an answer may still come
            raise
        with self._lock:
            is_kept = len(self._idle) < MAX_IDLE_CONNECTIONS
            if is_kept:
                self._idle.append(connection)
        if not is_kept:
            connection.close()
        return answer

    def _connection(self) -> socket.socket:
        """Return a connection that nobody uses; raise ModelError, OSError."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
            ours, theirs = socket.socketpair()
            with theirs:
                if _handed(self._socket, theirs):
                    return ours
        ours.close()
        raise ModelError(_GONE)


def _close(control: socket.socket, idle: list[socket.socket]) -> None:
    for each in (control, *idle):
        each.close()


def _handed(control: socket.socket, other: socket.socket) -> bool:
    """Send a socket over another one; return whether there is somebody to take it."""
    try:
        socket.send_fds(control, [b"+"], [other.fileno()])
    except OSError:
        return False
    return True


def _asked(connection: socket.socket, request: wire.Message) -> wire.Message:
    """Return the answer to a question; raise ModelError with what it says went wrong, or where nobody answers."""
    try:
        wire.send(connection, request)
        answer = wire.receive(connection)
    except wire.Closed as e:
        raise ModelError(_GONE) from e
    if "error" in answer:
        raise ModelError(answer["error"])
    return answer


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
