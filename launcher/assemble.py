"""Build the objects of a rank from the configuration; the only file that names concrete classes."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import torch

from ollampi.api.errors import ApiError
from ollampi.api.store import Store
from ollampi.launcher.config import CONF
from ollampi.launcher.schema import Config
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.errors import ConfigError, ModelError
from ollampi.mpiruntime.inbox import SocketInbox
from ollampi.mpiruntime.mpi import Mpi, launched_size, prepare, start
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.world import survey


def communicator() -> Mpi | Single:
    """Return the communicator of this process's world: MPI's under a launcher, else a world of one."""
    size = launched_size(os.environ)
    if size is None:
        return Single()
    prepare(os.environ)
    return start(size)


def runner(comm: Communicator, config: Config) -> Runner:
    """Return the runner of this rank with its share of the cores; collective."""
    facts = survey(comm)
    torch.set_num_threads(config.threads or facts[comm.rank].threads)
    return Runner(comm, facts)


def model_folders(config: Config) -> list[Path]:
    """Return the folders that hold models: the given model's own, the configured ones, and the one that ships."""
    given = Path(config.model).expanduser()
    own = [given.resolve()] if (given / "config.json").exists() else []
    configured = [Path(f).expanduser().resolve() for f in config.model_folders]
    for folder in configured:
        if not folder.is_dir():
            raise ConfigError(f"model_folders names {folder}, which is no folder")
    return [*own, *configured, CONF / "models"]


def find_model(config: Config) -> ModelRef:
    """Return the model to load at the start; raise ModelError or ConfigError where there is none of that name."""
    folders = model_folders(config)
    store = Store(folders)
    if folders[0] == Path(config.model).expanduser().resolve() and "/" in str(config.model):
        model = store.at(str(folders[0]))
        return ModelRef(model.full_name, str(model.path)) if model else ModelRef(folders[0].name, str(folders[0]))
    try:
        model = store.find(config.model)
    except ApiError as e:
        names = ", ".join(m.full_name for m in store.models()) or "none"
        raise ModelError(
            f"model {config.model!r} not found; give the path of a model folder, or one of: {names}"
        ) from e
    return ModelRef(model.full_name, str(model.path))


def listen(config: Config) -> socket.socket:
    """Return the listening HTTP socket; raise ConfigError where the address cannot be had."""
    host, port = config.server.host, config.server.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as e:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {e.strerror}; give another address with server.host=… or server.port=…"
        ) from e
    return listener


def inbox() -> SocketInbox:
    """Return the coordinator's inbox at an address that nobody can guess and that leaves no file behind."""
    return SocketInbox(f"unix:@ollampi-{os.getpid()}-{secrets.token_hex(8)}")


def front(config: Config, listener: socket.socket, engine_address: str) -> subprocess.Popen[bytes]:
    """Start the HTTP process on the listening socket, in a session of its own; it dies with this process."""
    host = listener.getsockname()[0]
    settings = {
        "listen_fd": listener.fileno(),
        "engine": engine_address,
        "parent": os.getpid(),
        "models": [str(folder) for folder in model_folders(config)],
        "threads": config.server.threads,
        "origins": list(config.server.origins),
        "max_body_bytes": config.server.max_body_bytes,
        "context_length": config.engine.context_length,
        "loopback": host.startswith("127.") or host == "::1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "ollampi.api.front", json.dumps(settings)],
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
