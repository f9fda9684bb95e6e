"""Kill a process that changes a model store, at random moments, and look at what is left."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ollampi.api.errors import ApiError
from ollampi.api.names import parse_name
from ollampi.api.store.catalog import Store
from ollampi.api.store.creation import Creation, create
from ollampi.api.store.local import LocalStore
from ollampi.api.store.operations import copy, delete, put_blob
from ollampi.api.store.verify import verify

NAMES = ("a", "b", "me/c:1", "me/c:2")
LONGEST_S = 0.25  # until a process is killed


@dataclass
class Outcome:
    """What was found: kills by the operation that they met, and what was wrong."""

    kills: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def kill_writers(root: Path, gguf: bytes, folder: Path, count: int, seed: int) -> Outcome:
    """Kill `count` writers of the store at `root`, one after the other, and check it after each.

    gguf, folder: models that they make others of. One model is never touched, and must never change.
    """
    outcome, chance = Outcome(), random.Random(seed)
    local = LocalStore(root)
    put_blob(local, _digest(gguf), [gguf])
    for _ in create(local, Store([folder], local), Creation("kept", files={"m.gguf": _digest(gguf)}, system="kept")):
        pass
    for number in range(count):
        operation = _killed(root, gguf, folder, chance.uniform(0, LONGEST_S), seed * 1_000_000 + number)
        outcome.kills[operation] = outcome.kills.get(operation, 0) + 1
        outcome.wrong += [f"kill {number} in {operation}: {text}" for text in _wrong(root, folder)]
    return outcome


def _killed(root: Path, gguf: bytes, folder: Path, after_s: float, seed: int) -> str:
    """Start a writer in a process of its own, kill it after so long, and return what it was doing."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _write_for_ever(root, gguf, folder, random.Random(seed), lambda name: os.write(sender, name[:1].encode()))
        finally:
            os._exit(1)
    os.close(sender)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(receiver, "rb") as told:
        started = told.read()[-1:]
    return {b"c": "create", b"f": "from files", b"d": "delete", b"y": "copy", b"u": "upload"}.get(started, "the start")


def _write_for_ever(
    root: Path, gguf: bytes, folder: Path, chance: random.Random, tell: Callable[[str], object]
) -> None:
    """Make, copy and delete models at random."""
    local = LocalStore(root)
    catalog = Store([folder], local)
    while True:
        name, other, system = chance.choice(NAMES), chance.choice([*NAMES, "kept"]), f"system {chance.random()}"
        operation = chance.choice("cfdddyyyu")  # the last three are quick
        tell(operation)
        with suppress(ApiError):  # of names that are not there
            if operation == "c":
                wanted = Creation(name, from_=chance.choice([other, folder.name]), system=system, licenses=[system])
                for _ in create(local, catalog, wanted):
                    pass
            elif operation == "f":
                put_blob(local, _digest(gguf), [gguf[:1000], gguf[1000:]])
                for _ in create(local, catalog, Creation(name, files={"m.gguf": _digest(gguf)}, system=system)):
                    pass
            elif operation == "d":
                delete(local, catalog, name)
            elif operation == "y":
                copy(local, catalog, other, name)
            else:
                put_blob(local, _digest(system.encode()), [system.encode()])


def _wrong(root: Path, folder: Path) -> list[str]:
    """Return what is wrong with a store whose writer was killed; write to it at last, as the next one would."""
    local = LocalStore(root, lock_wait_s=5)
    catalog = Store([folder], local)
    wrong = [
        f"{finding.models}: {finding.digest} is {finding.state}" for finding in verify(local) if finding.state != "ok"
    ]
    for name in local.names():
        try:
            model = catalog.find(name.full)
            model.texts.tokenizer()
        except Exception as e:
            wrong.append(f"{name.short} cannot be used: {e}")
    kept = parse_name("kept")
    assert kept is not None
    if kept not in local.names() or catalog.find("kept").system != "kept":
        wrong.append("the model that nobody touched has changed")
    wrong += [f"{path.name} is not what it is called" for path in (root / "blobs").glob("sha256-*") if not _whole(path)]
    for path in root.glob("manifests/*/*/*/*"):
        if not path.name.startswith(".") and path.stat().st_size == 0:
            wrong.append(f"{path} is empty")
    local.prune()
    left = [path.name for path in (root / "blobs").iterdir() if path.name.startswith(".keeping-")]
    return wrong + [f"{name} is left" for name in left]


def _whole(path: Path) -> bool:
    return path.name == f"sha256-{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
