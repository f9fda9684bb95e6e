"""Bind the address of the server; light, so that a launcher may look whether it is free before any rank starts."""

from __future__ import annotations

import socket

from ollampi.mpiruntime.errors import ConfigError, short


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address of this host; raise ConfigError where it cannot be."""
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as e:  # UnicodeError: a name that can be no host's, such as `a..b`
        if listener is not None:
            listener.close()
        raise refused(host, port, e) from e
    return listener


def refused(host: str, port: int, error: OSError | UnicodeError) -> ConfigError:
    """Return what is to be said where an address cannot be listened on."""
    return ConfigError(
        f"cannot listen on {short(host)}:{port}: {getattr(error, 'strerror', None) or 'no name of a host'}; "
        "give another address with server.host=…, server.port=… or OLLAMA_HOST"
    )
