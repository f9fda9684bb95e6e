"""Tell MPI which network interface to use between hosts, before it starts."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from ollampi.mpiruntime.errors import ConfigError, quoted

_VARIABLES = (
    "OMPI_MCA_btl_tcp_if_include",  # Open MPI's own TCP
    "UCX_NET_DEVICES",  # UCX, inside Open MPI or MPICH
    "FI_TCP_IFACE",  # libfabric, inside MPICH, Intel MPI or Open MPI
)


def interface_variables(interface: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what to add to environ so that any MPI takes the interface; what the user has set there stays as it is."""
    return {name: interface for name in _VARIABLES if name not in environ}


def interfaces() -> list[str]:
    """Return the names of this host's network interfaces."""
    return sorted(name for _, name in socket.if_nameindex())


def check_interface(interface: str) -> None:
    """Raise ConfigError where this host has no interface of that name."""
    known = interfaces()
    if interface not in known:
        raise ConfigError(
            f"exchange.interface is {quoted(interface)}, which {socket.gethostname()} does not have; use one of"
            f" {', '.join(known)}, or null for MPI's own choice"
        )
