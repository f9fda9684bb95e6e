"""Run the HTTP server process: `python -m ollampi.api.front JSON`, started by rank 0 or the supervisor.

The process and its worker die with the process that started them, whatever ends that one.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from ollampi.api.app import create_app
from ollampi.api.settings import DEFAULT_MAX_BODY_BYTES, Settings
from ollampi.api.socket_engine import SocketEngine
from ollampi.api.store import Store
from ollampi.mpiruntime.lifetime import die_with

_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)  # the process that started us decides


@dataclass(frozen=True)
class FrontConfig:
    """What the server process is told: a listening socket it inherited, the engine's address, the parent's pid."""

    listen_fd: int
    engine: str
    parent: int
    models: list[str] = field(default_factory=list)
    threads: int = 256
    origins: list[str] = field(default_factory=list)
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    loopback: bool = True
    default_keep_alive_s: float | None = None
    context_length: int | None = None

    def settings(self) -> Settings:
        """Return the settings of the application."""
        return Settings(
            origins=self.origins,
            max_body_bytes=self.max_body_bytes,
            loopback=self.loopback,
            default_keep_alive_s=self.default_keep_alive_s,
            context_length=self.context_length,
            num_threads=self.threads,
        )


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn with one threaded worker on an inherited socket."""

    def __init__(self, config: FrontConfig) -> None:
        self._front = config
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options; nothing is read from files or the environment."""
        for name, value in gunicorn_options(self._front).items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Return the application; gunicorn calls this in the worker."""
        engine = SocketEngine(self._front.engine)
        return create_app(engine, Store([Path(path) for path in self._front.models]), self._front.settings())


def gunicorn_options(config: FrontConfig) -> dict[str, Any]:
    """Return gunicorn's options for a server process.

    timeout 0: a long stream is never killed. Connections beyond the threads wait for one.
    """
    return {
        "bind": f"fd://{config.listen_fd}",
        "worker_class": "gthread",
        "workers": 1,
        "threads": config.threads,
        "worker_connections": config.threads + 1024,
        "timeout": 0,
        "graceful_timeout": 1,
        "keepalive": 30,
        "accesslog": None,
        "errorlog": "-",
        "loglevel": "warning",
        "control_socket_disable": True,
        "when_ready": _ignore_signals,
        "post_fork": _tie_worker,
        "post_worker_init": _ignore_signals,
    }


def _tie_worker(server: Any, worker: Any) -> None:
    die_with(server.pid)


def _ignore_signals(_: Any) -> None:
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM or the parent's end."""
    config = FrontConfig(**json.loads(arguments[0]))
    die_with(config.parent)
    _ignore_signals(None)
    Server(config).run()


if __name__ == "__main__":
    main(sys.argv[1:])
