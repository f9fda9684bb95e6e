"""Give all ranks the configuration of rank 0."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any, get_type_hints

from ollampi.launcher.schema import Config
from ollampi.mpiruntime.communicator import Communicator


def shared(comm: Communicator, own: Config) -> Config:
    """Return the configuration of rank 0 on all ranks, whatever their hosts' environments say; collective.

    What belongs to a host stays: the name of the node, and the network, which MPI has read already.
    """
    told = comm.broadcast(json.dumps(asdict(own)).encode() if comm.rank == 0 else None)
    config: Config = _made(Config, json.loads(told))
    config.cluster.node_name = own.cluster.node_name
    config.exchange.interface = own.exchange.interface
    return config


def _made(kind: Any, values: dict[str, Any]) -> Any:
    """Return the dataclass that `asdict` took apart."""
    hints = get_type_hints(kind)
    return kind(**{n: _made(hints[n], v) if is_dataclass(hints[n]) else v for n, v in values.items()})
