"""Build the objects of a rank from the configuration; the only file that names concrete classes."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ollampi.api.errors import ApiError
from ollampi.api.model import read_model
from ollampi.api.store import Store
from ollampi.api.text_tokenizer import Tokenizers
from ollampi.launcher.config import CONF
from ollampi.launcher.home import home
from ollampi.launcher.model_path import folders, model_path, no_model, served_name
from ollampi.launcher.schema import Config
from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.errors import ConfigError, ModelError
from ollampi.mpiruntime.exchange import choose_exchange
from ollampi.mpiruntime.heap import keep_buffers
from ollampi.mpiruntime.inbox import SocketInbox
from ollampi.mpiruntime.kernel_choice import choose_kernels
from ollampi.mpiruntime.mpi import Mpi, launched_size, prepare, start
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.trace import Trace, check_path
from ollampi.mpiruntime.world import apart, crowded, survey


def communicator() -> Mpi | Single:
    """Return the communicator of this process's world: MPI's under a launcher, else a world of one."""
    size = launched_size(os.environ)
    if size is None:
        return Single()
    prepare(os.environ)
    return start(size)


def runner(comm: Communicator, config: Config) -> tuple[Runner, str]:
    """Return the runner of this rank with its share of the cores, and how the ranks exchange tensors; collective.

    Raise ConfigError on all ranks where rank 0 cannot write the trace that is wanted, or the exchange cannot be had.
    """
    path = None if config.trace is None else Path(os.path.abspath(os.path.expanduser(config.trace)))
    agree(comm, lambda: check_path(path) if path and comm.rank == 0 else None)
    facts = apart(survey(comm)) if config.pin else survey(comm)
    keep_buffers()
    threads = config.threads or facts[comm.rank].threads
    torch.set_num_threads(threads)
    exchange = choose_exchange(comm, facts, config.exchange, crowded(facts, comm.rank, threads))
    own = home(os.environ)
    choice = choose_kernels(exchange.comm, None if own is None else own / ".cache" / "ollampi")
    return Runner(exchange.comm, facts, None if path is None else Trace(path), choice), exchange.told


def model_folders(config: Config) -> list[Path]:
    """Return the folders that hold models: the given model's own, the configured ones, and the one that ships."""
    own = model_path(config.model)
    return [*([own] if own else []), *folders(config.model_folders), CONF / "models"]


def find_model(config: Config, given: str) -> ModelRef:
    """Return a model by name or path; raise ModelError or ConfigError where there is none or its tokenizer is none."""
    store = Store(model_folders(config))
    own = model_path(given)
    try:
        model = store.find(given) if own is None else read_model(served_name(own), own)
        Tokenizers().get(model)  # the HTTP process makes its own with the first request, which is late to be refused
        return model.ref
    except ApiError as e:
        raise ModelError(no_model(given, [model.full_name for model in store.models()])) from e


def find_adapted(config: Config) -> ModelRef:
    """Return the model that the server is started for, with its adapters; raise ModelError or ConfigError."""
    folders = tuple(os.path.abspath(os.path.expanduser(folder)) for folder in config.adapter)
    return replace(find_model(config, config.model), adapters=folders)


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
