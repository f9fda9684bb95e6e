"""Run the HTTP server process: `python -m ollampi.api.front JSON`, started by rank 0 or the supervisor.

The process and its worker die with the process that started them, whatever ends that one.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from ollampi.api.access import Keys, read_keys
from ollampi.api.app import create_app
from ollampi.api.logs import adopt_gunicorn, log_with_ids
from ollampi.api.settings import DEFAULT_MAX_BODY_BYTES, Settings
from ollampi.api.socket_engine import SocketEngine
from ollampi.api.store.catalog import Store
from ollampi.api.store.local import LocalStore
from ollampi.api.text_process import TextProcess
from ollampi.api.whereabouts import Fixed, Kept
from ollampi.api.worker import Worker, adapted
from ollampi.mpiruntime.heap import return_buffers
from ollampi.mpiruntime.lifetime import die_with
from ollampi.mpiruntime.log_files import LogSettings

_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)  # the process that started us decides
MAX_DESCRIPTORS = 65536
MAX_IDLE_CONNECTIONS = 8192
_OWN_DESCRIPTORS = 64  # besides those of threads: for the poller, the engine, the files of models
_DESCRIPTORS_OF_THREAD = 2  # its client, and the process that it asks for token ids


@dataclass(frozen=True)
class FrontConfig:
    """What the server process is told: a listening socket it inherited, the engine's address, the parent's pid.

    kept: whether that is a keeper's, which says where the engine is; models: folders of models; store: the root of the
    model store, None for no store; logs: fields of LogSettings.
    """

    listen_fd: int
    engine: str
    parent: int
    kept: bool = False
    models: list[str] = field(default_factory=list)
    store: str | None = None
    threads: int = 256
    origins: list[str] = field(default_factory=list)
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    loopback: bool = True
    default_keep_alive_s: float | None = None
    context_length: int | None = None
    hosts: list[str] = field(default_factory=list)
    keys: str | None = None
    registries: list[str] = field(default_factory=list)
    transfer_streams: int = 4
    logs: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> Settings:
        """Return the settings of the application; raise ConfigError where the file of keys cannot be used."""
        return Settings(
            origins=self.origins,
            max_body_bytes=self.max_body_bytes,
            loopback=self.loopback,
            default_keep_alive_s=self.default_keep_alive_s,
            context_length=self.context_length,
            num_threads=self.threads,
            hosts=self.hosts,
            keys=Keys() if self.keys is None else read_keys(Path(self.keys)),
            registries=self.registries,
            num_transfer_streams=self.transfer_streams,
        )


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn with one threaded worker on an inherited socket."""

    def __init__(self, config: FrontConfig, num_descriptors: int) -> None:
        self._front = config
        self._num_descriptors = num_descriptors
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options; nothing is read from files or the environment."""
        for name, value in gunicorn_options(self._front, self._num_descriptors).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Return the application; gunicorn calls this in the worker."""
        local = None if self._front.store is None else LocalStore(Path(self._front.store))
        store = Store([Path(path) for path in self._front.models], local)
        where = Kept(self._front.engine) if self._front.kept else Fixed(self._front.engine)
        _ignore_signals(None)  # which what is started here inherits
        texts = TextProcess()
        texts.start()  # it is ready when the first request comes
        return adapted(create_app(SocketEngine(where), store, self._front.settings(), texts))


def gunicorn_options(config: FrontConfig, num_descriptors: int) -> dict[str, Any]:
    """Return gunicorn's options for a server process that may have so many files open.

    timeout 0: a long stream is never killed. Connections beyond the threads wait for one, those beyond
    worker_connections in the kernel. No client is a proxy whose headers count.
    """
    spare = num_descriptors - _DESCRIPTORS_OF_THREAD * config.threads - _OWN_DESCRIPTORS
    return {
        "bind": f"fd://{config.listen_fd}",
        "worker_class": Worker,
        "workers": 1,
        "threads": config.threads,
        "worker_connections": max(1, min(config.threads + MAX_IDLE_CONNECTIONS, spare)),
        "timeout": 0,
        "graceful_timeout": 1,
        "keepalive": 30,
        "accesslog": None,
        "errorlog": "-",
        "loglevel": "warning",
        "control_socket_disable": True,
        "forwarded_allow_ips": "",
        "forwarder_headers": "",
        "when_ready": _begin,
        "post_fork": _tie_worker,
        "post_worker_init": _ignore_signals,
    }


def _begin(_: Any) -> None:
    _ignore_signals(None)
    adopt_gunicorn()


def _tie_worker(server: Any, worker: Any) -> None:
    die_with(server.pid)


def _ignore_signals(_: Any) -> None:
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def raise_descriptor_limit() -> int:
    """Let this process open as many files as the system allows, within reason; return how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def beyond_stdio(fd: int) -> int:
    """Return a descriptor that stands for the same as `fd` and is none of stdin, stdout and stderr."""
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)
    return moved


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM or the parent's end."""
    config = FrontConfig(**json.loads(arguments[0]))
    die_with(config.parent)
    log_with_ids(LogSettings(**config.logs))
    return_buffers()
    _ignore_signals(None)
    Server(replace(config, listen_fd=beyond_stdio(config.listen_fd)), raise_descriptor_limit()).run()


if __name__ == "__main__":
    main(sys.argv[1:])
