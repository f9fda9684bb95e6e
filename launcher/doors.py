"""What rank 0 has open to the outside: its own HTTP process, or a link to the process that keeps one."""

from __future__ import annotations

import socket
import subprocess
from typing import Protocol

from ollampi.launcher.http_process import bound_to, end_front
from ollampi.launcher.keeper_link import KeeperLink
from ollampi.mpiruntime.errors import OllampiError
from ollampi.mpiruntime.inbox import SocketInbox


class Doors(Protocol):
    """What rank 0 has open. bound: host and port of the HTTP process; inbox: where its messages come in."""

    bound: tuple[str, int]
    inbox: SocketInbox

    def watch(self) -> None:
        """Raise OllampiError where the HTTP process has ended by itself."""
        ...

    def ready(self) -> None:
        """Say that the model is there."""
        ...

    def done(self) -> None:
        """Say that the job ends since it was asked to."""
        ...

    def close(self) -> None:
        """Send what is queued and close what is open."""
        ...


class OwnDoors:
    """A port and an HTTP process that rank 0 started; they end with it."""

    def __init__(self, listener: socket.socket, inbox: SocketInbox, front: subprocess.Popen[bytes]) -> None:
        self.bound = bound_to(listener)
        self.inbox = inbox
        self._listener = listener  # kept open: its descriptor is the HTTP process'
        self._front = front

    def watch(self) -> None:
        """Raise OllampiError where the HTTP process has ended by itself."""
        status = self._front.poll()
        if status is not None:
            raise OllampiError(f"the HTTP process ended with status {status}; its messages are above")

    def ready(self) -> None:
        """Do nothing: nobody waits for it."""

    def done(self) -> None:
        """Do nothing: mpirun's status says it."""

    def close(self) -> None:
        """Send what is queued, then end the HTTP process."""
        self.inbox.close()
        end_front(self._front)


class KeptDoors:
    """An HTTP process that another process keeps and watches; it stays when rank 0 ends."""

    def __init__(self, link: KeeperLink, inbox: SocketInbox) -> None:
        self.bound = link.bound
        self.inbox = inbox
        self._link = link

    def watch(self) -> None:
        """Do nothing: who started the HTTP process watches it."""

    def ready(self) -> None:
        """Tell the keeper that the model is there."""
        self._link.tell("ready")

    def done(self) -> None:
        """Tell the keeper that these ranks are not to be started again."""
        self._link.tell("done")

    def close(self) -> None:
        """Send what is queued and hang up."""
        self.inbox.close()
        self._link.close()
