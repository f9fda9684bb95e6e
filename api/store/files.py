"""Write files and folders of the store: whole or not at all, readable by others, and safe against a loss of power."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeVar

from ollampi.api.errors import ApiError
from ollampi.api.store.process import is_gone, mark

F = TypeVar("F", bound=IO[bytes])
FILE_MODE, FOLDER_MODE = 0o644, 0o755  # whatever the umask: a store is shared by the users of a machine
TEMPORARY = ".writing-"  # begins no name of a model, tag or blob
DEAD_S = 86400.0  # for downloads and temporary files that nobody goes on with
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
FULL = (errno.ENOSPC, errno.EDQUOT)


def refused() -> ApiError:
    """Return the error of a store that this process may not write."""
    return ApiError(
        403,
        "the model store is read-only for this server; set OLLAMA_MODELS (or store=) to a folder that it may write,"
        " or have its owner make this change",
    )


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn a failure to write into an ApiError that says what to do: 403 where it is not allowed, 500 for a full disk.

    Other failures become 500 with the system's words and no path.
    """
    try:
        yield
    except OSError as e:
        if e.errno in _REFUSED:
            raise refused() from e
        if e.errno in FULL:
            raise ApiError(500, "no space left on device in the model store; delete models or free space") from e
        raise ApiError(500, f"the model store cannot be written: {e.strerror or type(e).__name__}") from e


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, readable by all; raise OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):  # another writer was faster
        path.mkdir()
        path.chmod(FOLDER_MODE)
        sync_folder(path.parent)


def create_file(path: Path) -> int:
    """Return the descriptor of a new file, open to read and write; raise OSError, FileExistsError too."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    os.fchmod(fd, FILE_MODE)
    return fd


@contextlib.contextmanager
def closed_quietly(file: F) -> Iterator[F]:
    """Give a file and close it; what its buffer still holds may be lost: whoever needs it has flushed it."""
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # a full disk, which the writer knows already
            file.close()


def temporary_name(folder: Path) -> Path:
    """Return an unused name in a folder for a file or folder that is not whole yet."""
    return folder / f"{TEMPORARY}{mark()}-{secrets.token_hex(8)}"


def is_dead_temporary(path: Path) -> bool:
    """Return whether a file or folder has a temporary name that nobody works at: its process is gone, or it is old."""
    if not path.name.startswith(TEMPORARY):
        return False
    return is_gone(path.name.removeprefix(TEMPORARY).partition("-")[0]) or age_s(path) > DEAD_S


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in place with all its bytes, or leave what was there; raise OSError."""
    make_folder(path.parent)
    temporary = temporary_name(path.parent)
    try:
        with open(create_file(temporary), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file that is whole and synced its final name; raise OSError."""
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make the bytes of a file survive a loss of power; raise OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Make the entries of a folder survive a loss of power; raise OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno != errno.EINVAL:  # some file systems cannot
            raise
    finally:
        os.close(fd)


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it up to `root`, which stays, as long as they are empty; raise OSError."""
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except OSError as e:
            if e.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return
            if e.errno != errno.ENOENT:
                raise
        folder = folder.parent


def age_s(path: Path) -> float:
    """Return for how long a file or folder is as it is; 0 where it has gone. For ages that clocks do not differ by."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
