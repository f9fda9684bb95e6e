"""Let rank 0 tell the process that keeps the port where it is, and how far.

    rank 0 -> keeper   {"op": "here", "secret": …, "address": "unix:@NAME"}    where its inbox listens
    keeper -> rank 0   {"bound": [host, port]}                                 or {"refused": why}
    rank 0 -> keeper   {"op": "ready"}                                         the model is there
    rank 0 -> keeper   {"op": "done"}                                          it ends since it was asked to

The connection stays open as long as rank 0 lives.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

from ollampi.mpiruntime import wire
from ollampi.mpiruntime.errors import ConfigError

KEEPER, SECRET = "OLLAMPI_KEEPER", "OLLAMPI_KEEPER_SECRET"  # where it listens; what the ranks of one start prove
_ANSWER_S = 10.0


def is_kept(environ: Mapping[str, str]) -> bool:
    """Return whether another process keeps the port, and starts the ranks again where they end."""
    return bool(environ.get(KEEPER))


class KeeperLink:
    """The connection of rank 0 to the keeper. bound: the host and the port that the keeper has."""

    def __init__(self, address: str, environ: Mapping[str, str]) -> None:
        """Tell the keeper that the inbox of this job listens at `address`; raise ConfigError where it does not hear."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_ANSWER_S)
            self._socket.connect(wire.unix_address(environ[KEEPER]))
            if wire.peer_uid(self._socket) not in (0, os.getuid()):
                raise wire.Closed("another user's process listens there")
            wire.send(self._socket, {"op": "here", "secret": environ.get(SECRET, ""), "address": address})
            answer = wire.receive(self._socket)
        except (OSError, wire.Closed) as e:
            self._socket.close()
            raise ConfigError(
                f"rank 0 runs on {socket.gethostname()} and does not reach the HTTP process, which is on the host of"
                " `ollampi launch`: name that host first in the hostfile, or start without --restarts"
            ) from e
        if (refused := answer.get("refused")) is not None:
            self._socket.close()
            raise ConfigError(f"the launcher refuses these ranks: {refused}")
        self._socket.settimeout(None)
        host, port = answer["bound"]
        self.bound: tuple[str, int] = host, port

    def tell(self, op: str) -> None:
        """Tell the keeper how far this job is; nothing where the keeper is gone."""
        with suppress(wire.Closed):
            wire.send(self._socket, {"op": op})

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
