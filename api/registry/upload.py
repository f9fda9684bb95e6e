"""Bring a blob of the store to a registry, in parts, going on where a part broke off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ollampi.api.errors import ApiError
from ollampi.api.registry.progress import Meter
from ollampi.api.registry.remote import Remote
from ollampi.api.registry.transfer import Cancel, Limits, TransientError, retried
from ollampi.api.registry.web import RefusedError
from ollampi.api.store.digest import Digest

PART_BYTES = 64 << 20
_SEND_BYTES = 1 << 20
_LOST = (404, 416)  # the registry forgot the upload, or has other bytes of it than we think


def upload(remote: Remote, path: Path, digest: Digest, size: int, meter: Meter, cancel: Cancel, limits: Limits) -> None:
    """Have the registry keep a blob; one that it has already is not sent. Raise ApiError and CancelledError."""
    if not retried(lambda: remote.has(digest), cancel, limits):
        with path.open("rb", buffering=0) as file:
            _Upload(remote, file.fileno(), digest, size, meter, cancel, limits).run()
    meter.completed = size


class _Upload:
    """One upload: where its next bytes go, and how many the registry has."""

    def __init__(
        self, remote: Remote, fd: int, digest: Digest, size: int, meter: Meter, cancel: Cancel, limits: Limits
    ) -> None:
        self._remote, self._fd, self._digest, self._size = remote, fd, digest, size
        self._meter, self._cancel, self._limits = meter, cancel, limits
        self._url: str | None = None
        self._position = 0
        self._is_sure = True  # that the registry has `_position` bytes

    def run(self) -> None:
        """Send all parts, each with as many tries as the limits allow, and have them kept."""
        while self._url is None or self._position < self._size:
            retried(self._step, self._cancel, self._limits)
        retried(self._finish, self._cancel, self._limits)

    def _step(self) -> None:
        """Begin, or send the next part; raise TransientError and ApiError."""
        try:
            if self._url is None:
                self._url, self._position, self._is_sure = self._remote.start_upload(), 0, True
            if not self._is_sure:
                there, self._url = self._remote.uploaded(self._url)
                self._position, self._is_sure = min(there, self._size), True
            stop = min(self._position + PART_BYTES, self._size)
            if stop > self._position:
                body = _Region(self._fd, self._position, stop, self._meter, self._cancel)
                self._url = self._remote.upload_piece(self._url, self._position, stop, body)
                self._position = stop
        except TransientError:
            self._is_sure = False
            raise
        except RefusedError as e:
            if e.code not in _LOST or self._url is None:
                raise
            self._url = None
            raise TransientError(f"the registry lost the upload of {self._digest}") from e

    def _finish(self) -> None:
        """Have the registry keep the bytes; one that did so before its answer was lost has the blob."""
        try:
            self._remote.finish_upload(self._url or "", self._digest)
        except RefusedError as e:
            if not self._remote.has(self._digest):
                text = f"the registry does not take blob {self._digest} ({e}); check it: ollampi verify"
                raise ApiError(500, text) from e


class _Region:
    """The bytes of a file from `start` to `stop`, as often as they are asked for."""

    def __init__(self, fd: int, start: int, stop: int, meter: Meter, cancel: Cancel) -> None:
        self._fd, self._start, self._stop = fd, start, stop
        self._meter, self._cancel = meter, cancel

    def __iter__(self) -> Iterator[bytes]:
        position = self._start
        while position < self._stop:
            self._cancel.check()
            data = os.pread(self._fd, min(_SEND_BYTES, self._stop - position), position)
            if not data:
                raise ApiError(500, "a blob of the store is shorter than its manifest says; pull the model again")
            self._meter.completed = position
            yield data
            position += len(data)
        self._meter.completed = position
