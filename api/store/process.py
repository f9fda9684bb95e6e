"""Tell this process from others, of this machine and elsewhere, and whether another one is still there."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path


@functools.cache
def place() -> str:
    """Return what tells this machine's processes from those of other machines and containers; "" if unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_of(pid: int) -> str:
    """Return when a process began, in ticks since the machine did: a number may be given again; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def has_ended(pid: int, started: str) -> bool:
    """Return whether a process of this machine that began then is gone; one that we may not look at is there."""
    found = start_of(pid)
    if found or pid < 1:
        return found != started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return start_of(pid) not in ("", started)


def mark() -> str:
    """Return a word that stands for this process, for the name of a file; it has no hyphen."""
    return f"{os.getpid()}.{start_of(os.getpid())}.{_short_place()}"


def is_gone(marked: str) -> bool:
    """Return whether the process of a mark has ended, as far as that can be seen from here."""
    pid, _, rest = marked.partition(".")
    started, _, where = rest.partition(".")
    known = pid.isascii() and pid.isdigit() and len(pid) < 10 and bool(place())
    return known and where == _short_place() and has_ended(int(pid), started)


def _short_place() -> str:
    return hashlib.sha256(place().encode()).hexdigest()[:12]
