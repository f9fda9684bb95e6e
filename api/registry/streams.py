"""Fetch pieces of a remote file with several threads, and give them in order."""

from __future__ import annotations

import threading
from collections.abc import Generator

from ollampi.api.errors import ApiError
from ollampi.api.registry.remote import RangeIgnoredError, RemoteFile
from ollampi.api.registry.transfer import PIECE_BYTES, Cancel, CancelledError, Limits, TransientError, retried
from ollampi.api.registry.web import chunks

PIECES_PER_STREAM = 2  # one that comes, and one that waits for an earlier piece
_JOIN_S = 5.0


class _Piece:
    """The bytes of a file from `start` to `stop`, into a buffer; those that came stay when a connection breaks."""

    def __init__(self, file: RemoteFile, start: int, stop: int, buffer: bytearray) -> None:
        self._file, self._start, self._stop = file, start, stop
        self._place = memoryview(buffer)[: stop - start]
        self._num_there = 0

    def fetch(self) -> memoryview:
        """Return the bytes, going on where an earlier try ended; raise TransientError and ApiError."""
        for chunk in chunks(self._file.piece(self._start + self._num_there, self._stop), self._file.what):
            after = self._num_there + len(chunk)
            if after > len(self._place):
                raise ApiError(500, f"{self._file.what} came with more bytes than asked for; pull again")
            self._place[self._num_there : after] = chunk
            self._num_there = after
        if self._num_there < len(self._place):
            raise TransientError(f"{self._file.what} broke off")
        return self._place


class Streams:
    """Threads that fetch the bytes of a file from `start` to its end; used by one thread as an iterator.

    They share PIECES_PER_STREAM buffers each, so memory stays the same however slowly pieces are taken. Pieces are
    begun in order, so the one that comes next always has a buffer.
    """

    def __init__(self, file: RemoteFile, start: int, num_streams: int, cancel: Cancel, limits: Limits) -> None:
        self._file, self._cancel, self._limits = file, cancel, limits
        self._next = self._given = start
        self._ready: dict[int, memoryview] = {}
        self._failure: BaseException | None = None
        self._change = threading.Condition()
        num_pieces = -(-(file.size - start) // PIECE_BYTES)
        self._buffers = [bytearray(PIECE_BYTES) for _ in range(min(num_streams * PIECES_PER_STREAM, num_pieces))]
        self._threads = [
            threading.Thread(target=self._run, name="transfer", daemon=True)
            for _ in range(min(num_streams, num_pieces))
        ]

    def __iter__(self) -> Generator[memoryview, None, None]:
        """Yield the pieces in order, each to be used up before the next is asked for.

        Raise what ended a thread: ApiError, CancelledError, RangeIgnoredError.
        """
        for thread in self._threads:
            thread.start()
        try:
            while self._given < self._file.size:
                data = self._take()
                yield data
                with self._change:
                    self._given += len(data)
                    self._buffers.append(data.obj)  # type: ignore[arg-type]  # the buffer that it is a view of
                    self._change.notify_all()
        finally:
            with self._change:
                self._failure = self._failure or CancelledError("nobody takes the pieces")
                self._change.notify_all()
            if self._given < self._file.size and not isinstance(self._failure, RangeIgnoredError):
                self._cancel()  # the transfer is over, and threads may wait for bytes
            for thread in self._threads:
                thread.join(_JOIN_S)

    def _take(self) -> memoryview:
        """Return the piece that comes next."""
        with self._change:
            self._change.wait_for(lambda: self._given in self._ready or self._failure is not None)
            if self._given not in self._ready and self._failure is not None:
                raise self._failure
            return self._ready.pop(self._given)

    def _run(self) -> None:
        """Fetch pieces until all are there or one thread fails."""
        try:
            while (claimed := self._claim()) is not None:
                start, buffer = claimed
                piece = _Piece(self._file, start, min(start + PIECE_BYTES, self._file.size), buffer)
                data = retried(piece.fetch, self._cancel, self._limits)
                with self._change:
                    self._ready[start] = data
                    self._change.notify_all()
        except BaseException as e:
            with self._change:
                self._failure = self._failure or e
                self._change.notify_all()

    def _claim(self) -> tuple[int, bytearray] | None:
        """Return where the next piece begins and a buffer for it, once one is free; None where there is no piece."""
        with self._change:
            self._change.wait_for(lambda: self._buffers or self._failure is not None or self._next >= self._file.size)
            if self._failure is not None or self._next >= self._file.size:
                return None
            start = self._next
            self._next += PIECE_BYTES
            return start, self._buffers.pop()


def in_order(file: RemoteFile, skipped: int, cancel: Cancel) -> Generator[bytes, None, None]:
    """Yield the bytes of a file from `skipped` on, from one answer that holds it whole.

    Raise TransientError where it ends early, ApiError where it has more bytes than announced.
    """
    position, held = 0, bytearray()
    broken: TransientError | None = None
    body = chunks(file.whole(), file.what)
    while position <= file.size:
        cancel.check()
        try:
            chunk = next(body, b"")
        except TransientError as e:  # what came before stays
            broken = e
            break
        if not chunk:
            break
        held += chunk[max(0, skipped - position) :]
        position += len(chunk)
        if len(held) >= PIECE_BYTES:
            yield bytes(held)
            held.clear()
    if position > file.size:
        body.close()
        raise ApiError(500, f"{file.what} has more than the {file.size} bytes that were announced; pull again")
    if held:
        yield bytes(held)
    if position < file.size:
        raise broken or TransientError(f"{file.what} broke off")
