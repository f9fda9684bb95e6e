"""Have what the server of a Slurm job needs on its host and on the shared file system: port, key, logs, model."""

from __future__ import annotations

import json
import os
import random
import secrets
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ollampi.launcher.endpoint import Endpoint, own_text
from ollampi.launcher.kinds import Value
from ollampi.launcher.model_path import model_path, served_name
from ollampi.mpiruntime.errors import ConfigError

_KEY_FILE = "keys"
_LONGEST_KEY = 1000  # bytes
_PORTS = range(20000, 32000)  # below those that Linux gives to connections


def can_bind(host: str, port: int) -> bool:
    """Return whether this host has the port to give; raise ConfigError where it does not have the address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as e:
        raise ConfigError(f"server.host is {host!r}, which is no address of this host; use 0.0.0.0 for all") from e
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(host: str, wanted: int) -> int:
    """Return the wanted port where it is free, else another one; somebody may take it before the server does."""
    for port in [*([wanted] if wanted else []), *random.sample(_PORTS, 200)]:
        if can_bind(host, port):
            return port
    raise ConfigError(
        f"{host} has no port to give: neither {wanted} nor 200 others; set server.host to another address"
    )


def reached_at(bound_to: str) -> str:
    """Return the host under which others find a server that is bound to an address."""
    return socket.gethostname() if bound_to in ("0.0.0.0", "::") else bound_to


def make_logs(folder: Path) -> None:
    """Make the folder of the logs, for its owner; raise ConfigError where it cannot be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(8)}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        why = "it is no folder" if isinstance(e, FileExistsError) else e.strerror
        raise ConfigError(
            f"logs cannot be written to {folder}: {why}; submit from a folder that all nodes may write, or"
            " give one with logging.folder=…"
        ) from e


def make_key(folder: Path) -> tuple[Path, str]:
    """Return the file with the key that clients must send, and the key: as it was before the job was queued again.

    Raise ConfigError where it cannot be written.
    """
    path = folder / _KEY_FILE
    with suppress(OSError, ValueError):
        role, key = own_text(path, _LONGEST_KEY).split()
        if role == "admin" and path.stat().st_mode & 0o077 == 0:
            return path, key
    key = secrets.token_urlsafe(24)
    try:
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"admin {key}\n")
    except OSError as e:
        raise ConfigError(
            f"the server's key cannot be written to {path}: {e.strerror}; remove what is there, make room, or give"
            " another folder with logging.folder=…"
        ) from e
    return path, key


def needed_paths(settings: Mapping[str, Value]) -> list[str]:
    """Return what each node must have: this interpreter and program, the models and adapters that are given by path.

    settings: what was given, by path. A model that is given by name and lies in a configured folder counts too.
    """
    found = [sys.executable, os.path.abspath(__file__)]
    folders = settings.get("model_folders") or []
    assert isinstance(folders, list)
    for name in ("model", "draft"):
        if isinstance(given := settings.get(name), str):
            named = [Path(folder) / given for folder in folders]
            own = model_path(given) or next((path for path in named if path.exists()), None)
            found += [os.path.abspath(own or given)] if own or "/" in given else []
    adapters = settings.get("adapter") or []
    assert isinstance(adapters, list)
    return found + [os.path.abspath(os.path.expanduser(each)) for each in adapters]


def check_lacks(lacks: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError where a node lacks what it needs; lacks: the paths by node."""
    if lacks:
        path = next(iter(lacks.values()))[0]
        nodes = [node for node, paths in lacks.items() if path in paths]
        has = "do" if len(nodes) > 1 else "does"
        raise ConfigError(
            f"{', '.join(nodes)} {has} not have {path}: put it where all nodes see it, or leave nodes out with"
            f" --exclude={','.join(nodes)}"
        )


def model_name(settings: Mapping[str, Value]) -> str:
    """Return the name under which clients ask for the model."""
    given = str(settings.get("model") or "demo")
    path = model_path(given)
    return (given if path is None else served_name(path).short).removesuffix(":latest")


def words(made: Endpoint, key_file: Path | None, login: str, file: Path) -> str:
    """Return lines to paste: a tunnel from one's own machine, and a first request from a host of the cluster.

    login: the host from which the job was submitted; file: the endpoint file. The key is in no line.
    """
    loopback = made.host.startswith("127.") or made.host == "localhost"
    node = socket.gethostname() if loopback else made.host
    way = f"11434:127.0.0.1:{made.port} -J {login} {node}" if loopback else f"11434:{made.host}:{made.port} {login}"
    body = shlex.quote(
        json.dumps({"model": made.model, "prompt": "Hello", "stream": False, "options": {"num_predict": 32}})
    )
    key = f"-H \"Authorization: Bearer $(cut -d' ' -f2 {shlex.quote(str(key_file))})\" " if key_file else ""
    return "\n".join(
        [
            f"job {made.job_id} serves {made.model} at {made.url} with {made.ranks} ranks; see {file}",
            f"  from your machine, then http://localhost:11434: ssh -N -L {way}",
            f"  on the cluster: curl {key}{made.url}/api/generate -d {body}",
        ]
    )
