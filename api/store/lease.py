"""A file that says who holds something, how long, and that its holder is still alive; on NFS too.

Its name is given by a link, which fails where the name is taken, on NFS too. The holder renews the file's time; it is
stale once its process is gone, as far as that can be seen from here, or once nobody renewed it for STALE_S.
Ages are differences of times that one file server gave, so clocks need not agree.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollampi.api.store.files import FULL, create_file, temporary_name
from ollampi.api.store.process import has_ended, place, start_of
from ollampi.api.store.spare import SPARE_BYTES, take_spare

STALE_S = 60.0
RENEW_S = 10.0
_MAX_BYTES = 1 << 20
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_SETTLE_S = 0.2  # for file systems without links


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: its id, host and process, when it was taken, and for how many seconds it is so.

    taken: by the clock of the file system; taken_s, renewed_s: seconds since it was taken and renewed; place,
    started: what tells the process from others of its number.
    """

    id: str
    host: str
    pid: int
    place: str
    started: str
    taken: float
    taken_s: float
    renewed_s: float
    content: tuple[str, ...] = ()

    @property
    def is_stale(self) -> bool:
        """Return whether the holder can be taken for dead."""
        gone = self.place == place() and bool(self.place) and has_ended(self.pid, self.started)
        return gone or self.renewed_s > STALE_S

    def __str__(self) -> str:
        who = f"process {self.pid} on {self.host}" if self.host else "an unknown process"
        return f"{who}, which took it {self.taken_s:.0f} s ago and renewed it {self.renewed_s:.0f} s ago"


class Lease:
    """A lease that this process holds, renewed by a thread until it is released."""

    def __init__(self, path: Path, content: tuple[str, ...] = (), spare: Path | None = None) -> None:
        """Take the lease; raise FileExistsError where somebody has it, other OSErrors where it cannot be written.

        spare: the file that becomes the lease where the disk is full.
        """
        self.path = path
        self.id = secrets.token_hex(16)
        self._fd, self._spare = _claim(path, self.id, content, spare)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def is_held(self) -> bool:
        """Return whether the lease is still ours: after a long standstill somebody may have taken it."""
        return _text(_read(self.path)[0], "id") == self.id

    def release(self) -> None:
        """Give the lease back; where it is no longer ours, only stop renewing it."""
        self._ends.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self.is_held():
                _drop(self.path, self._spare)
        os.close(self._fd)

    def _renew(self) -> None:
        """Renew the time of the file that we made, whatever its name stands for by now."""
        while not self._ends.wait(RENEW_S):
            with contextlib.suppress(OSError):
                os.utime(self._fd)


def holder_of(path: Path) -> Holder | None:
    """Return who holds a lease, None where nobody does; raise OSError, also where nothing can be written beside it.

    A file that is no lease counts as one of an unknown holder, so that it becomes stale in time.
    """
    told, changed = _read(path)
    if changed is None:
        return None
    now = _now(path)
    taken = float(told["taken"]) if isinstance(told.get("taken"), int | float) else changed
    return Holder(
        id=_text(told, "id"),
        host=_text(told, "host")[:255],
        pid=told["pid"] if type(told.get("pid")) is int else 0,
        place=_text(told, "place"),
        started=_text(told, "started"),
        taken=taken,
        taken_s=max(0.0, now - taken),
        renewed_s=max(0.0, now - changed),
        content=tuple(each for each in told.get("content") or () if isinstance(each, str)),
    )


def remove_stale(path: Path, spare: Path | None = None) -> bool:
    """Remove a lease whose holder is dead; return whether it is gone. Raise OSError. spare: as of a Lease.

    Of several that see the same dead holder one removes the file, or else the second could remove a new holder's.
    """
    breaking = path.with_name(path.name + ".breaking")
    try:
        fd, spare = _claim(breaking, secrets.token_hex(16), (), spare)
        os.close(fd)
    except FileExistsError:
        other = holder_of(breaking)
        if other is not None and other.is_stale:  # it died within these lines
            breaking.unlink(missing_ok=True)
        return False
    try:
        holder = holder_of(path)
        if holder is not None and holder.is_stale:
            path.unlink(missing_ok=True)
            return True
        return holder is None
    finally:
        _drop(breaking, spare)


@contextlib.contextmanager
def leased(path: Path, content: tuple[str, ...]) -> Iterator[None]:
    """Hold a lease that nobody else wants, under a name of its own; raise OSError."""
    lease = Lease(path, content)
    try:
        yield
    finally:
        lease.release()


def _claim(path: Path, identity: str, content: tuple[str, ...], spare: Path | None) -> tuple[int, Path | None]:
    """Return the descriptor of a new file that says who holds it, and the place of the spare file that it was made of.

    It has its name only once it is written, so that nobody meets a lease of nobody, whenever its writer dies. Raise
    FileExistsError where it is there, OSError.
    """
    temporary = temporary_name(path.parent)
    try:
        return _written(temporary, path, identity, content, create_file), None
    except OSError as e:
        if e.errno not in FULL or spare is None:
            raise
        if path.exists():  # its holder may have taken the spare file
            raise FileExistsError(errno.EEXIST, "in use", str(path)) from e
        try:
            return _written(temporary, path, identity, content, lambda to: take_spare(spare, to), spare), spare
        except FileNotFoundError:
            raise e from None


def _written(
    temporary: Path,
    path: Path,
    identity: str,
    content: tuple[str, ...],
    make: Callable[[Path], int],
    spare: Path | None = None,
) -> int:
    """Return the descriptor of the file that `make` gives, written and with its name; raise FileExistsError, OSError.

    spare: where a file goes back that gets no name.
    """
    fd = make(temporary)
    try:
        own = {"id": identity, "host": socket.gethostname(), "pid": os.getpid()}
        own |= {"place": place(), "started": start_of(os.getpid()), "taken": os.fstat(fd).st_mtime}
        text = json.dumps({**own, "content": content}).encode()
        os.write(fd, text if spare is None else text.ljust(SPARE_BYTES))
        os.fsync(fd)
        _give_name(temporary, path, fd)
    except BaseException:
        os.close(fd)
        _drop(temporary, spare)
        raise
    temporary.unlink(missing_ok=True)
    return fd


def _drop(path: Path, spare: Path | None) -> None:
    """Remove a file, or put it back as the spare one; raise OSError."""
    if spare is None:
        path.unlink(missing_ok=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, spare)


def _give_name(temporary: Path, path: Path, fd: int) -> None:
    """Give a file a second name that nothing has; raise FileExistsError, OSError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        if os.fstat(fd).st_nlink < 2:  # else it is ours: the answer of an NFS server was lost, and it was asked again
            raise
    except OSError as e:
        if e.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(e.errno, "in use", str(path)) from e
        os.rename(temporary, path)  # two at one moment would both succeed, and see at once who came second
        time.sleep(_SETTLE_S)
        if not os.path.samestat(os.fstat(fd), path.stat()):
            raise FileExistsError(e.errno, "in use", str(path)) from e


def _read(path: Path) -> tuple[dict[str, Any], float | None]:
    """Return what a lease's file says and when it was renewed, None where there is no file; raise OSError."""
    try:
        with path.open("rb") as file:  # opened anew, so that NFS asks its server
            return _told(file.read(_MAX_BYTES)), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return {}, None


def _now(path: Path) -> float:
    """Return the time by the clock of the file system that holds `path`; raise OSError."""
    try:
        return _now_of_new(temporary_name(path.parent))
    except OSError as e:
        if e.errno not in FULL:
            raise
    os.utime(path.parent)  # takes no room
    return path.parent.stat().st_mtime


def _now_of_new(probe: Path) -> float:
    """Return when a new file was made, which is gone again; raise OSError."""
    try:
        fd = create_file(probe)
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
    finally:
        probe.unlink(missing_ok=True)


def _told(raw: bytes) -> dict[str, Any]:
    """Return what a lease's file says; nothing where it is no lease, or is being written."""
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _text(told: dict[str, Any], key: str) -> str:
    value = told.get(key)
    return value if isinstance(value, str) else ""
