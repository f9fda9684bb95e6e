"""Keep files under the digest of their bytes, none under its final name before it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from ollampi.api.errors import ApiError, bad_request
from ollampi.api.store.digest import Digest, digest_of
from ollampi.api.store.files import (
    FILE_MODE,
    closed_quietly,
    create_file,
    make_folder,
    put_in_place,
    refused,
    sync_file,
    temporary_name,
    writing,
)

PARTIAL = ".partial"  # behind the name of a blob that is being downloaded
CHUNK_BYTES = 1 << 20


class Blobs:
    """The blobs below `root`, a folder that need not be there before the first is written.

    Every writing function raises ApiError: 403 where the store cannot be written, 500 where its disk is full.
    """

    def __init__(self, root: Path, is_read_only: bool = False) -> None:
        self.root = root
        self._is_read_only = is_read_only

    def path(self, digest: Digest) -> Path:
        """Return where a blob is, if it is there."""
        return self.root / digest.file_name

    def has(self, digest: Digest) -> bool:
        """Return whether a blob is there."""
        return self.size(digest) is not None

    def size(self, digest: Digest) -> int | None:
        """Return the bytes of a blob, None where it is not there."""
        path = self.path(digest)
        try:
            return path.stat().st_size if path.is_file() else None
        except OSError:
            return None

    def put(self, chunks: Iterable[bytes | memoryview], expected: Digest | None = None) -> Digest:
        """Keep the bytes and return their digest; raise ApiError (400) where it is not the expected one.

        A blob that is there already is replaced by the same bytes, which repairs a damaged one.
        """
        with self._creating() as (file, temporary):
            hashed = hashlib.sha256()
            for chunk in chunks:
                hashed.update(chunk)
                with writing():
                    file.write(chunk)
            found = digest_of(hashed)
            check_digest(expected, found)
            with writing():
                file.flush()
                os.fsync(file.fileno())
                put_in_place(temporary, self.path(found))
        return found

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """Give the path of a file that the caller may write, to `adopt` it; otherwise it is gone afterwards."""
        with self._creating() as (_, path):
            yield path

    def adopt(self, temporary: Path) -> Digest:
        """Keep a temporary file as a blob and return its digest."""
        hashed = hashlib.sha256()
        with writing():
            for chunk in chunks_of(temporary):
                hashed.update(chunk)
            found = digest_of(hashed)
            temporary.chmod(FILE_MODE)
            sync_file(temporary)
            put_in_place(temporary, self.path(found))
        return found

    @contextlib.contextmanager
    def partial(self, digest: Digest, size: int) -> Iterator[Partial]:
        """Open what there is of a blob of `size` bytes that is being downloaded; it stays there if not finished.

        Not for two at one time: the caller holds the blob's lease (LocalStore.downloading).
        """
        path = self.path(digest)
        with self.writable():
            path = path.with_name(path.name + PARTIAL)
            try:
                fd = create_file(path)
            except FileExistsError:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        with closed_quietly(open(fd, "r+b")) as file:
            partial = Partial(file, path, self.path(digest), digest, size)
            yield partial

    @contextlib.contextmanager
    def writable(self) -> Iterator[None]:
        """Make the folder; turn what goes wrong while it is written into ApiErrors."""
        if self._is_read_only:
            raise refused()
        with writing():
            make_folder(self.root)
            yield

    @contextlib.contextmanager
    def _creating(self) -> Iterator[tuple[IO[bytes], Path]]:
        """Open a new file under a temporary name, which is gone afterwards; yield it with its path."""
        with self.writable():
            temporary = temporary_name(self.root)
            fd = create_file(temporary)
        try:
            with closed_quietly(open(fd, "wb")) as file:
                yield file, temporary
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


class Partial:
    """A blob that is being downloaded from its beginning on; `size_there` bytes are in its file already."""

    def __init__(self, file: IO[bytes], path: Path, final: Path, digest: Digest, size: int) -> None:
        self._file, self._path, self._final = file, path, final
        self.digest, self.size = digest, size
        self._hashed = hashlib.sha256()
        self.size_there = 0
        if os.fstat(file.fileno()).st_size > size:
            self.start_again()
        else:
            for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                self._take(chunk)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; raise ApiError (500) where they are more than the blob has, or cannot be written."""
        if self.size_there + len(data) > self.size:
            raise ApiError(500, f"more than the {self.size} bytes of {self.digest} were sent; pull the model again")
        with writing():
            self._file.write(data)
        self._take(data)

    def start_again(self) -> None:
        """Forget all bytes."""
        with writing():
            self._file.seek(0)
            self._file.truncate()
        self._hashed, self.size_there = hashlib.sha256(), 0

    def finish(self) -> None:
        """Give the blob its final name; raise ApiError (500), and forget all bytes, where they are the wrong ones."""
        found = digest_of(self._hashed)
        if self.size_there != self.size or found != self.digest:
            there = self.size_there
            self.start_again()
            raise ApiError(
                500,
                f"digest mismatch: {self.digest} with {self.size} bytes was expected, {found} with {there} bytes came;"
                " pull the model again",
            )
        with writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            put_in_place(self._path, self._final)

    def _take(self, data: bytes | memoryview) -> None:
        self._hashed.update(data)
        self.size_there += len(data)


def check_digest(expected: Digest | None, found: Digest) -> None:
    """Raise ApiError (400) in Ollama's words where bytes have another digest than the client said."""
    if expected is not None and found != expected:
        raise bad_request(f'digest mismatch, expected "{expected}", got "{found}"')


def chunks_of(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file; raise OSError."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
