"""Set up the logs of a process: a file for each part of the server, or stderr; text or JSON lines.

    cluster_coordinator.log     rank 0, but for what the next ones have
    model_scheduler.log         rank 0: models that come and go
    cluster_worker-RANK.log     every other rank
    cluster_network.log         what rank 0 exchanges with others, cluster_network-RANK.log what another one does
    api_server.log              the HTTP process

Modules log as everywhere, to the logger of their name; those of models and exchange are SCHEDULER and NETWORK. No log
line holds a key, a prompt or an answer.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from ollampi.mpiruntime.errors import ConfigError, short

OWN, SCHEDULER, NETWORK = "ollampi", "ollampi.scheduler", "ollampi.network"
LEVELS = ("debug", "info", "warning", "error")
OTHER_LEVELS = {"warn": "warning", "trace": "debug", "fatal": "error"}
API = {"": "api_server"}  # the parts of the HTTP process, as `parts` returns those of a rank
_TEXT = "%(asctime)s %(levelname)s %(request)s%(message)s"
_ESCAPED = {number: f"\\x{number:02x}" for number in (*range(32), 127) if chr(number) not in "\n\t"}


def level_named(text: str) -> str | None:
    """Return the one of LEVELS that a text names, in any case and under other programs' names too, else None."""
    level = OTHER_LEVELS.get(text.lower(), text.lower())
    return level if level in LEVELS else None


@dataclass
class LogSettings:
    """The logs.

    folder: None for stderr; format: text or json; level: auto, debug, info, warning or error; max_bytes of a file, of
    which there are `files` for each log; network: what ranks send each other is logged too, whatever the level.
    """

    folder: str | None = None
    format: str = "text"
    level: str = "auto"
    max_bytes: int = 10485760
    files: int = 5
    network: bool = False


def parts(rank: int) -> dict[str, str]:
    """Return the part of the server, which is the name of its file, by the loggers of a rank."""
    if rank:
        return {"": f"cluster_worker-{rank}", NETWORK: f"cluster_network-{rank}"}
    return {"": "cluster_coordinator", SCHEDULER: "model_scheduler", NETWORK: "cluster_network"}


def open_logs(settings: LogSettings, names: Mapping[str, str], told: logging.Filter | None = None) -> None:
    """Send what this process logs where the settings say; names: as `parts` returns; told: gives records `request`.

    Raise ConfigError where the folder cannot be written. What was open before is closed.
    """
    made = {name: _handler(settings, part, told) for name, part in names.items() if name != NETWORK or settings.network}
    close_logs()
    for name, handler in made.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger().setLevel(logging.WARNING)  # of libraries
    logging.getLogger(NETWORK).setLevel(logging.DEBUG if settings.network else logging.NOTSET)
    set_level(settings.level if settings.level != "auto" else "info" if settings.folder else "warning")


def close_logs() -> None:
    """Close the files of all logs; nothing is logged to them any more."""
    for name in ("", SCHEDULER, NETWORK):
        logger = logging.getLogger(name)
        logger.propagate = True
        for handler in [each for each in logger.handlers if isinstance(each, _File | _Stderr)]:
            logger.removeHandler(handler)
            handler.close()


def set_level(level: str) -> None:
    """Log from a level on: debug, info, warning or error."""
    logging.getLogger(OWN).setLevel(level.upper())


def current_level() -> str:
    """Return the level from which on this process logs: debug, info, warning or error."""
    return logging.getLevelName(logging.getLogger(OWN).getEffectiveLevel()).lower()


def in_files() -> bool:
    """Return whether what this process logs goes to a file."""
    return any(isinstance(handler, _File) for handler in logging.getLogger().handlers)


def check_folder(settings: LogSettings) -> None:
    """Raise ConfigError where this process could not write the log of the HTTP process."""
    if settings.folder is not None:
        for part in API.values():
            _handler(settings, part, None).close()


class _File(RotatingFileHandler):
    """A file that only its owner can read, and that says once where it cannot be written any more."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say it, once: a full disk must not fill stderr."""
        if not self._told:
            self._told = True
            print(f"ollampi: {self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr, flush=True)

    def _open(self) -> TextIOWrapper:
        opened = partial(os.open, mode=0o600)  # names of files may be no Unicode
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=opened)


class _Stderr(logging.StreamHandler[TextIO]):
    """Stderr as it is at the moment."""


class _Text(logging.Formatter):
    """A line for people, no character in it that steers a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.__dict__.setdefault("request", "")
        return super().format(record).translate(_ESCAPED)


class _Json(logging.Formatter):
    """An object in a line: time, level, part, logger and message; request and traceback where there are any."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        values = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "part": self._part,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := record.__dict__.get("request", "").strip():
            values["request"] = request
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def _handler(settings: LogSettings, part: str, told: logging.Filter | None) -> logging.Handler:
    """Return what writes the log of a part; raise ConfigError."""
    handler: logging.Handler = _Stderr() if settings.folder is None else _file(settings, part)
    handler.setFormatter(_Json(part) if settings.format == "json" else _Text(_TEXT))
    if told is not None:
        handler.addFilter(told)
    return handler


def _file(settings: LogSettings, part: str) -> _File:
    """Return the file of a part, in a folder that is made where it is not there; raise ConfigError."""
    path = Path(os.path.abspath(os.path.expanduser(settings.folder or ""))) / f"{part}.log"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _File(path, maxBytes=settings.max_bytes, backupCount=settings.files - 1)
    except OSError as e:
        raise ConfigError(
            f"logging.folder is {short(str(path.parent))}, where {path.name} cannot be written: {e.strerror};"
            " give a folder that this user may write, or null for stderr"
        ) from e
