"""Read the values that settings have under the names of Ollama and its cluster documents."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ollampi.launcher.address import parse_address
from ollampi.launcher.kinds import Flag, Value, seconds
from ollampi.launcher.settings import SETTINGS, as_text, typed
from ollampi.mpiruntime.errors import ConfigError, quoted, short
from ollampi.mpiruntime.log_files import LEVELS, level_named

_FLAG = Flag()


@dataclass(frozen=True)
class Read:
    """What a value of another name gives.

    values: by the path of a setting; warning: why it means nothing here, or less than it says; needs: a setting that
    must not be null beside it.
    """

    values: dict[str, Value]
    warning: str = ""
    needs: str = ""


Reader = Callable[[str, object], Read]


def plain(path: str) -> Reader:
    """Return a reader of a setting as it is."""
    return lambda name, value: Read({path: typed(path, name, value)})


def unless_zero(path: str) -> Reader:
    """Return a reader to which 0 is the default."""
    return lambda name, value: Read({} if as_text(value) == "0" else {path: typed(path, name, value)})


def nanoseconds(path: str) -> Reader:
    """Return a reader of whole numbers of nanoseconds, and of spans with units."""

    def read(name: str, value: object) -> Read:
        """Return what a value means for the path; raise ConfigError."""
        text = as_text(value)
        if re.fullmatch(r"[+-]?[0-9]+", text) is None:
            return Read({path: typed(path, name, value)})
        span_s = int(text[:30]) / 1e9
        if not SETTINGS[path].fits(span_s):
            raise ConfigError(
                f"{name} is {short(text)} nanoseconds; it must be {SETTINGS[path].takes}, or as a whole number"
                " nanoseconds"
            )
        return Read({path: span_s})

    return read


def span(path: str, forever: Value) -> Reader:
    """Return a reader of seconds and spans, of which some that Ollama takes for `for ever` are `forever`."""

    def read(name: str, value: object) -> Read:
        """Return what a value means for the path; raise ConfigError."""
        try:
            span_s = seconds(as_text(value))
        except ValueError:
            span_s = 0.0
            typed(path, name, value)  # which says what it takes
        endless = span_s < 0 or (span_s == 0 and forever is None)
        return Read({path: forever if endless else typed(path, name, value)})

    return read


def address(name: str, value: object) -> Read:
    """Read host, host:port, :port or http://host:port."""
    address = parse_address(as_text(value), name)  # as in Ollama, scheme and path are for clients only
    return Read({"server.host": address.host, "server.port": address.port})


def origins(name: str, value: object) -> Read:
    """Read origins with commas between them, or a list."""
    parts = value if isinstance(value, list) else [part.strip() for part in as_text(value).split(",") if part.strip()]
    return Read({"server.origins": typed("server.origins", name, parts)})


def cache_type(name: str, value: object) -> Read:
    """Read one of Ollama's types of a KV cache."""
    found = {"f16": "auto", "q8_0": "int8"}.get(as_text(value).lower())
    if found is None:
        raise ConfigError(
            f"{name} is {quoted(as_text(value))}; it must be f16 (engine.cache_dtype=auto, as without it) or q8_0"
            " (engine.cache_dtype=int8)"
        )
    return Read({"engine.cache_dtype": found})


def level(name: str, value: object) -> Read:
    """Read a level, also by other names."""
    level = level_named(as_text(value))
    if level is None:
        raise ConfigError(f"{name} is {quoted(as_text(value))}; it must be one of {', '.join(LEVELS)}")
    return Read({"logging.level": level})


def debug(name: str, value: object) -> Read:
    """Read OLLAMA_DEBUG: a flag, or a number for more of it."""
    text = as_text(value).lower()
    wanted = text in ("true", "t", "yes", "on") or (text.isdecimal() and int(text[:9]) > 0)
    if not wanted and text not in ("0", "false", "f", "no", "off"):
        raise ConfigError(f"{name} is {quoted(text)}; it must be 1 or 0, true or false")
    return Read({"logging.level": "debug"} if wanted else {})


def _flag(name: str, value: object) -> bool:
    text = as_text(value).lower()
    try:
        return bool(_FLAG.parse({"1": "true", "0": "false"}.get(text, text)))
    except ValueError:
        raise ConfigError(f"{name} is {quoted(as_text(value))}; it must be {_FLAG.takes}") from None


def switch(path: str, on: Value, off: Value = None) -> Reader:
    """Return a reader of a flag that gives `on`, or `off` where that is a value."""

    def read(name: str, value: object) -> Read:
        """Return what a value means for the path; raise ConfigError."""
        given = on if _flag(name, value) else off
        return Read({} if given is None else {path: given})

    return read


def below(path: str, folder: str) -> Reader:
    """Return a reader of a folder, one below which is a setting."""

    def read(name: str, value: object) -> Read:
        """Return what a value means for the path; raise ConfigError."""
        return Read({path: f"{str(typed(path, name, value)).rstrip('/')}/{folder}"})

    return read


def discovery(name: str, value: object) -> Read:
    """Read how nodes find each other."""
    method, known = as_text(value).lower(), ("manual", "multicast", "mdns", "mpi", "slurm")
    if method not in known:
        raise ConfigError(f"{name} is {quoted(as_text(value))}; it must be one of {', '.join(known)}")
    return Read(
        {}, "" if method in ("mpi", "slurm") else "mpirun or Slurm says who takes part: ranks find each other by MPI"
    )


def authentication(name: str, value: object) -> Read:
    """Read whether clients need keys, which a file then must hold."""
    return Read({}, needs="server.keys") if _flag(name, value) else Read({})


def encryption(name: str, value: object) -> Read:
    """Read whether there shall be TLS, which there is not."""
    if _flag(name, value):
        raise ConfigError(
            f"{name} is true; this server speaks no TLS: have a proxy before it do so, and set it to false"
        )
    return Read({})


def means_nothing(reason: str) -> Reader:
    """Return a reader of what means nothing here, whatever its value."""
    return lambda name, value: Read({}, reason)


def only(default: bool, reason: str) -> Reader:
    """Return a reader of a flag that can have one value only."""
    return lambda name, value: Read({}, "" if _flag(name, value) == default else reason)
