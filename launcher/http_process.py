"""Open the port and start the HTTP process on it; loads no torch, so that what starts the ranks can do it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from ollampi.api.access import read_keys
from ollampi.api.errors import ApiError
from ollampi.api.registry.hosts import Hosts
from ollampi.launcher.config import CONF
from ollampi.launcher.home import store_root
from ollampi.launcher.model_path import folders, model_path
from ollampi.launcher.schema import Config
from ollampi.mpiruntime.errors import ConfigError

_GRACE_S = 1.5  # which the HTTP process has for what it is still sending


def listen(config: Config) -> socket.socket:
    """Return the listening HTTP socket; raise ConfigError where the address cannot be had.

    Its descriptor is above 2, which the HTTP process does not take for its stdin where ours is closed.
    """
    host, port = config.server.host, config.server.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
            return socket.socket(fileno=fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
    except (OSError, UnicodeError) as e:  # UnicodeError: a name that can be no host's, such as `a..b`
        raise ConfigError(
            f"cannot listen on {host}:{port}: {getattr(e, 'strerror', None) or 'no name of a host'}; "
            "give another address with server.host=…, server.port=… or OLLAMA_HOST"
        ) from e


def bound_to(listener: socket.socket) -> tuple[str, int]:
    """Return the host and the port that a socket listens at."""
    host, port = listener.getsockname()[:2]
    return host, port


def url(bound: tuple[str, int]) -> str:
    """Return the URL under which a client on this host reaches the server that listens at a host and a port."""
    host, port = bound
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def model_folders(config: Config) -> list[Path]:
    """Return the folders that hold models: those given by path, the configured ones, and the one that ships."""
    own = [path for given in (config.model, *config.cluster.preload) if (path := model_path(given))]
    return [*dict.fromkeys(own), *folders(config.model_folders), CONF / "models"]


def start_front(
    config: Config, listener: socket.socket, engine_address: str, kept: bool = False
) -> subprocess.Popen[bytes]:
    """Start the HTTP process on the listening socket, in a session of its own; it dies with this process.

    kept: whether the address is that of a keeper, which says where the engine is. Main thread. Raise ConfigError where
    the file of keys cannot be used, and for a registry that is no host.
    """
    try:
        Hosts(config.server.registries)
    except ApiError as e:
        raise ConfigError(f"server.registries: {e}") from e
    host, _ = bound_to(listener)
    keys = None if config.server.keys is None else os.path.abspath(os.path.expanduser(config.server.keys))
    if keys is not None:
        read_keys(Path(keys))  # which the HTTP process does again: nobody shall see them in its arguments
    settings = {
        "listen_fd": listener.fileno(),
        "engine": engine_address,
        "kept": kept,
        "parent": os.getpid(),
        "models": [str(folder) for folder in model_folders(config)],
        "store": None if (root := store_root(config.store, os.environ)) is None else str(root),
        "threads": config.server.threads,
        "origins": list(config.server.origins),
        "hosts": [name.lower() for name in config.server.hosts],
        "keys": keys,
        "registries": list(config.server.registries),
        "transfer_streams": config.server.transfer_streams,
        "max_body_bytes": config.server.max_body_bytes,
        "context_length": config.engine.context_length,
        "logs": asdict(config.logging),
        "loopback": host.startswith("127.") or host == "::1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "ollampi.api.front", json.dumps(settings)],
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def end_front(front: subprocess.Popen[bytes]) -> None:
    """End the HTTP process; what it is still sending has a moment."""
    front.terminate()
    try:
        front.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        front.kill()
        front.wait()
