"""Talk with the grammar process without ever waiting for it, unless asked to."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
from typing import Any

import msgpack

from ollampi.mpiruntime.cores import all_cores
from ollampi.mpiruntime.grammar_marks import new_marks
from ollampi.mpiruntime.wire import Closed, Message

_LENGTH = struct.Struct(">I")
_BUFFER_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18
_COMMAND = [sys.executable, "-m", "ollampi.mpiruntime.grammar_worker"]


class Link:
    """A grammar process and the socket to it; it ends with this object, or with the thread that made it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        file, self._marks = new_marks()
        try:
            command = [*_COMMAND, str(os.getpid()), str(file)]
            with all_cores():
                self._process = subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, pass_fds=[file]
                )
        finally:
            theirs.close()
            os.close(file)
        self._unsent = bytearray()
        self._received = bytearray()

    def send(self, message: Message) -> None:
        """Send a message as far as the kernel takes it; `receive` sends the rest."""
        body = msgpack.packb(message)
        self._unsent += _LENGTH.pack(len(body)) + body
        self._push()

    def receive(self) -> list[Message]:
        """Return the messages that are there; raise Closed where the process has ended."""
        self._push()
        try:
            while part := self._socket.recv(_PIECE_BYTES):
                self._received += part
        except BlockingIOError:
            return self._whole()
        except OSError:
            pass  # a process that was killed with messages unread
        raise Closed("the grammar process has ended")

    def wait(self, timeout_s: float) -> None:
        """Return once there is something to receive, or the time is over."""
        self._push()
        select.select([self._socket], [self._socket] if self._unsent else [], [], timeout_s)

    def at_work_on(self) -> set[int]:
        """Return the numbers of the grammars that the process works on, or did when it died."""
        return self._marks.numbers()

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _push(self) -> None:
        """Send what the kernel takes; that the process has ended shows when receiving."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()

    def _whole(self) -> list[Message]:
        """Return the messages that have arrived in full and forget their bytes."""
        messages: list[Any] = []
        start = 0
        while len(self._received) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(self._received, start)[0]
            if end > len(self._received):
                break
            messages.append(msgpack.unpackb(self._received[start + _LENGTH.size : end]))
            start = end
        del self._received[:start]
        return messages
