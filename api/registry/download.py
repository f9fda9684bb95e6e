"""Bring a blob into the store: resumed, fetched in pieces by several threads, hashed while it is written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path

from ollampi.api.errors import ApiError
from ollampi.api.registry.progress import Meter
from ollampi.api.registry.remote import RangeIgnoredError, RemoteFile
from ollampi.api.registry.streams import Streams, in_order
from ollampi.api.registry.transfer import PIECE_BYTES, Cancel, TransferOptions, retried
from ollampi.api.store.blobs import PARTIAL, Partial
from ollampi.api.store.digest import Digest
from ollampi.api.store.local import LocalStore

_BUSY = 503  # somebody else downloads this blob
_POLL_S = 0.2
ROOM_BYTES = 1 << 20


def is_sound(store: LocalStore, digest: Digest, size: int, meter: Meter, cancel: Cancel) -> bool:
    """Return whether a blob is there with the right bytes, all of which are read; count them in `meter`."""
    if store.blobs.size(digest) != size:
        return False
    hashed = hashlib.sha256()
    try:
        with store.blobs.path(digest).open("rb", buffering=0) as file:
            while data := file.read(PIECE_BYTES):
                cancel.check()
                hashed.update(data)
                meter.completed += len(data)
    except OSError:
        return False
    return hashed.hexdigest() == digest.hex


def partial_size(store: LocalStore, digest: Digest) -> int:
    """Return how many bytes of a blob an earlier or another download left."""
    found = _identity(_partial_path(store, digest))
    return found[1] if found else 0


def download(
    store: LocalStore, file: RemoteFile, digest: Digest, meter: Meter, cancel: Cancel, options: TransferOptions
) -> None:
    """Have a blob in the store that is what its digest says.

    One that is there already is read and, where it is damaged, replaced. Where another thread or process downloads it,
    wait, and go on if that one fails. Raise ApiError, and CancelledError; what came is kept for the next time.
    """
    if is_sound(store, digest, file.size, meter, cancel):
        return
    meter.completed = 0
    before = _identity(store.blobs.path(digest))
    with _alone(store, digest, file.size, meter, cancel) as partial:
        if _identity(store.blobs.path(digest)) != before and store.blobs.size(digest) == file.size:
            return  # another one finished it meanwhile
        resumed = partial.size_there > 0
        try:
            _fill(partial, file, meter, cancel, options)
        except ApiError as e:
            if isinstance(e.__cause__, OSError) and e.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
                _leave_room(store, digest)
            raise
        try:
            partial.finish()
        except ApiError:
            if not resumed:
                raise
            _fill(partial, file, meter, cancel, options)  # what an earlier try left may have been damaged
            partial.finish()


def _partial_path(store: LocalStore, digest: Digest) -> Path:
    path = store.blobs.path(digest)
    return path.with_name(path.name + PARTIAL)


def _leave_room(store: LocalStore, digest: Digest) -> None:
    """Give a full disk some bytes back: without any, nobody could take the lock to delete a model."""
    path = _partial_path(store, digest)
    with contextlib.suppress(OSError):
        os.truncate(path, max(0, path.stat().st_size - ROOM_BYTES))


@contextlib.contextmanager
def _alone(store: LocalStore, digest: Digest, size: int, meter: Meter, cancel: Cancel) -> Iterator[Partial]:
    """Open the partial file of a blob as soon as nobody else has it; meanwhile `meter` follows theirs."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                partial = stack.enter_context(store.downloading(digest, size, wait_s=0))
                break
            except ApiError as e:
                if e.status != _BUSY:
                    raise
            meter.completed = min(size, partial_size(store, digest))
            cancel.sleep(_POLL_S)
        yield partial


def _fill(partial: Partial, file: RemoteFile, meter: Meter, cancel: Cancel, options: TransferOptions) -> None:
    """Append what is missing to a partial file."""
    meter.completed = partial.size_there
    if file.size - partial.size_there > PIECE_BYTES:
        streams = Streams(file, partial.size_there, options.num_streams, cancel, options.limits)
        with contextlib.suppress(RangeIgnoredError):
            _append(partial, iter(streams), meter)

    def append_rest() -> None:
        _append(partial, in_order(file, partial.size_there, cancel), meter)

    if partial.size_there < file.size:
        retried(append_rest, cancel, options.limits)


def _append(partial: Partial, pieces: Generator[bytes | memoryview, None, None], meter: Meter) -> None:
    with contextlib.closing(pieces):
        for data in pieces:
            partial.write(data)
            meter.completed = partial.size_there


def _identity(path: Path) -> tuple[int, int] | None:
    """Return which file has a name, and its size."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size
