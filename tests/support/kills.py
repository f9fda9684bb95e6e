"""Pulls in processes of their own, which are killed at random moments; and what must be true of the store then."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from ollampi.api.names import parse_name
from ollampi.api.store.local import LocalStore

_PULL = """
import sys
from pathlib import Path
from ollampi.api.names import parse_name
from ollampi.api.registry.pull import pull
from ollampi.api.registry.transfer import TransferOptions
from ollampi.api.store.local import LocalStore
root, name, url, streams = sys.argv[1:]
options = TransferOptions(registries=(url,), num_streams=int(streams))
for line in pull(LocalStore(Path(root)), parse_name(name), options):
    print(line, flush=True)
"""


def start_pull(root: Path, name: str, url: str, num_streams: int = 4) -> subprocess.Popen[str]:
    """Start a process that pulls a model and prints every line of progress."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", _PULL, str(root), name, url, str(num_streams)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def kill_after(process: subprocess.Popen[str], delay_s: float) -> str:
    """Kill a pull -9 so long after its first line; return the last line that it printed."""
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(delay_s)
    process.kill()
    return (first + process.communicate()[0]).splitlines()[-1]


def faults_of(root: Path) -> list[str]:
    """Return what is wrong with a store: blobs under their final names that are not whole, models that lack one."""
    store = LocalStore(root)
    found = []
    for path in sorted(store.blobs.root.glob("sha256-*")):
        if "." not in path.name and hashlib.sha256(path.read_bytes()).hexdigest() != path.name[7:]:
            found.append(f"{path.name} has other bytes")
    for name in store.names():
        manifest = store.read(name)
        assert manifest is not None
        found += [f"{name.short} lacks {digest}" for digest in manifest.blobs if not store.blobs.has(digest)]
    return found


def has(root: Path, name: str) -> bool:
    """Return whether a store has a model."""
    parsed = parse_name(name)
    assert parsed is not None
    return LocalStore(root).read(parsed) is not None
