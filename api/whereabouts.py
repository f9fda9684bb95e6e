"""Find the coordinator: at one address for ever, or where the process that starts the ranks says that it is now.

HTTP process -> keeper   {"op": "where"}
keeper -> HTTP process   {"address": "unix:@NAME"}, or {"code": code of EngineError, "message": why there is none}
"""

from __future__ import annotations

import os
import socket
from typing import Protocol

from ollampi.api.engine_client import EngineError
from ollampi.mpiruntime import wire

GONE_TEXT = "the engine went away; try again in a few seconds"
_ABSENT_TEXT = "the engine is not running or not ready; try again in a few seconds"
_ANSWER_S = 2.0


class Whereabouts(Protocol):
    """Where the coordinator is, and what its end means."""

    def connect(self) -> socket.socket:
        """Return a connection to the coordinator, which must run under our own user; raise EngineError."""
        ...

    def is_over(self, ending: str | None) -> bool:
        """Return whether there will be no engine any more once it has said `ending`."""
        ...

    def gone(self, ending: str | None) -> EngineError:
        """Return what a request over a broken connection is told; ending: why, where the engine has said so."""
        ...


class Fixed:
    """A coordinator at one address, which ends with this process."""

    def __init__(self, address: str) -> None:
        self._address = address

    def connect(self) -> socket.socket:
        """Return a connection to the coordinator; raise EngineError."""
        try:
            return _connect(self._address)
        except OSError as e:
            raise EngineError("unavailable", _ABSENT_TEXT) from e

    def is_over(self, ending: str | None) -> bool:
        """Return whether the engine has said that it ends."""
        return ending is not None

    def gone(self, ending: str | None) -> EngineError:
        """Return what a request over a broken connection is told."""
        return EngineError("unavailable", GONE_TEXT) if ending is None else EngineError("ended", ending)


class Kept:
    """A coordinator that is started again where it ends; `address` is that of the keeper, which knows where it is."""

    def __init__(self, address: str) -> None:
        self._address = address

    def connect(self) -> socket.socket:
        """Return a connection to the coordinator of now; raise EngineError with code restarting where there is none."""
        try:
            with _connect(self._address) as keeper:
                keeper.settimeout(_ANSWER_S)
                wire.send(keeper, {"op": "where"})
                answer = wire.receive(keeper)
        except (OSError, wire.Closed) as e:
            raise EngineError("unavailable", _ABSENT_TEXT) from e
        if "address" not in answer:
            raise EngineError(answer["code"], answer["message"])
        try:
            return _connect(answer["address"])
        except OSError as e:  # it has ended since
            raise self.gone(None) from e

    def is_over(self, ending: str | None) -> bool:
        """Return False: whatever these ranks say, others may come."""
        return False

    def gone(self, ending: str | None) -> EngineError:
        """Return what a request over a broken connection is told."""
        return EngineError("restarting", ending or GONE_TEXT)


def _connect(address: str) -> socket.socket:
    """Return a connection to a process of our own user; raise OSError, and EngineError where it is another's."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(wire.unix_address(address))
    except OSError:
        connection.close()
        raise
    if wire.peer_uid(connection) != os.getuid():
        connection.close()
        raise EngineError("unavailable", "the engine's socket belongs to another user; restart the server")
    return connection
