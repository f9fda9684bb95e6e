"""The store of models on disk, in Ollama's layout: manifests by name, blobs by digest.

    root/manifests/HOST/NAMESPACE/MODEL/TAG    which blobs a model consists of
    root/blobs/sha256-HEX                      the blobs
    root/views/HEX/...                         of a model of several files: a folder of links to its blobs

Readers take no lock: every file is whole under its name. A manifest is written after its blobs and its view, and goes
before them, so that at any moment of a writer's death all blobs that a manifest names are there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ollampi.api.errors import ApiError
from ollampi.api.names import DEFAULT_HOST, Name, parse_name
from ollampi.api.store.blobs import Blobs, Partial
from ollampi.api.store.digest import Digest
from ollampi.api.store.files import make_folder, remove_empty, sync_folder, write_whole
from ollampi.api.store.lease import Lease, holder_of, leased, remove_stale
from ollampi.api.store.manifest import MAX_MANIFEST_BYTES, Manifest
from ollampi.api.store.prune import KEEPING, prune
from ollampi.api.store.references import LINKED_HOST, LINKED_MANIFESTS, MANIFESTS, digests_in
from ollampi.api.store.spare import keep_spare
from ollampi.api.store.views import Views
from ollampi.mpiruntime.errors import ModelError

LOCK_WAIT_S = 30.0
_LOCK, _SPARE = "ollampi.lock", "ollampi.lock.spare"
_POLL_S = 0.05
_log = logging.getLogger(__name__)


class LocalStore:
    """The store below `root`, which need not be there before the first write; safe to use from several threads.

    Every writing function raises ApiError: 403 where the store cannot be written, 500 for a full disk, 503 where
    another writer does not end.
    """

    def __init__(self, root: Path, is_read_only: bool = False, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.root = root
        self.blobs = Blobs(root / "blobs", is_read_only)
        self.views = Views(root / "views", self.blobs)
        self._manifests = root / MANIFESTS
        self._lock_wait_s = lock_wait_s
        self._local = threading.local()

    def names(self) -> list[Name]:
        """Return the names of all models, in order; damaged ones too."""
        return sorted(self.paths(), key=lambda name: name.key)

    def paths(self) -> dict[Name, Path]:
        """Return the files of all manifests by name; what is no model's name or no file is left out."""
        found: dict[Name, Path] = {}
        for parts, path in _entries(self._manifests, 4):
            name = parse_name("{}/{}/{}:{}".format(*parts))
            if name is not None and path.is_file():
                found[name] = path
        return found

    def path(self, name: Name) -> Path | None:
        """Return the file of a model's manifest, None where there is none; case counts only between two such names."""
        found = self.find(name)
        return None if found is None else found[1]

    def find(self, name: Name) -> tuple[Name, Path] | None:
        """Return a model's name as it is written in the store, and its manifest's file; None where there is none."""
        exact = self._path(name)
        if exact.is_file():
            return name, exact
        parts = (name.host, name.namespace, name.model, name.tag)
        for own, path in _entries(self._manifests, 4, tuple(part.lower() for part in parts)):
            if path.is_file():
                return Name(*own), path
        return None

    def read(self, name: Name) -> Manifest | None:
        """Return a model's manifest, None where there is none; raise ModelError where it is damaged."""
        path = self.path(name)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                return Manifest.parse(file.read(MAX_MANIFEST_BYTES + 1))
        except FileNotFoundError:
            return None
        except OSError as e:
            raise ModelError(f"the manifest of {name.short} cannot be read: {e.strerror}; check its file") from e
        except ModelError as e:
            raise ModelError(f"model {name.short}: {e}") from e

    def write(self, name: Name, manifest: Manifest) -> None:
        """Give a model its manifest, in the place of an earlier one of that name; then remove what nobody names.

        Raise ApiError (500) where one of its blobs is not there or has another size, ModelError for a manifest that
        could not be read again.
        """
        Manifest.parse(manifest.encode())
        with self.lock():
            self._check_blobs(manifest)
            path = self.path(name) or self._path(name)
            with self.blobs.writable():
                freed = digests_in(path)
                self.views.make(manifest)
                self._check_lock()
                write_whole(path, manifest.encode())
                self._drop_linked(name)
            self._prune(freed)

    def remove(self, name: Name) -> bool:
        """Remove a model and what only it consisted of; return whether there was one."""
        with self.lock():
            path = self.path(name)
            if path is None:
                return False
            with self.blobs.writable():
                freed = digests_in(path)
                self._check_lock()
                path.unlink()
                sync_folder(path.parent)
                remove_empty(path.parent, self._manifests)
                self._drop_linked(name)
            self._prune(freed)
        return True

    def prune(self) -> None:
        """Remove blobs that nothing names and nobody is about to name, and what dead writers left."""
        with self.lock():
            self._prune(())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one writer, on all hosts; a thread that is so already stays so.

        Raise ApiError (503) with the other writer's process and age where it does not end in time.
        """
        if getattr(self._local, "lease", None) is not None:
            yield
            return
        with self.blobs.writable():
            spare = self.root / _SPARE
            self._local.lease = self._take(self.root / _LOCK, "another process writes the model store", spare=spare)
            keep_spare(spare)
        try:
            yield
        finally:
            lease, self._local.lease = self._local.lease, None
            lease.release()

    @contextlib.contextmanager
    def keeping(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Keep blobs, there or not yet, that a manifest will name later: nobody prunes them meanwhile."""
        with contextlib.ExitStack() as stack:
            with self.lock(), self.blobs.writable():
                path = self.blobs.root / f"{KEEPING}{secrets.token_hex(8)}"
                stack.enter_context(leased(path, tuple(digests)))
            yield

    @contextlib.contextmanager
    def reading(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Keep blobs while they are read, as far as this process can: in a store that it cannot write it cannot."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.keeping(digests))
            except ApiError as e:
                if e.status != 403:
                    raise
            yield

    @contextlib.contextmanager
    def downloading(self, digest: Digest, size: int, wait_s: float = LOCK_WAIT_S) -> Iterator[Partial]:
        """Open the partial file of a blob, alone on all hosts; raise ApiError (503) where another one loads it."""
        with self.blobs.writable():
            path = self.blobs.root / f"{KEEPING}{digest.file_name}"
            lease = self._take(path, f"another process downloads {digest}", wait_s)
        try:
            with self.blobs.partial(digest, size) as partial:
                yield partial
        finally:
            lease.release()

    def _take(self, path: Path, busy: str, wait_s: float | None = None, spare: Path | None = None) -> Lease:
        """Return a lease once nobody else has it; raise ApiError (503) where it takes too long."""
        deadline = time.monotonic() + (self._lock_wait_s if wait_s is None else wait_s)
        make_folder(path.parent)
        while True:
            try:
                return Lease(path, spare=spare)
            except FileExistsError:
                holder = holder_of(path)
            if holder is not None and holder.is_stale and remove_stale(path, spare):
                _log.warning("a lock of the model store is broken: its holder is dead, %s", holder)
            elif holder is not None and time.monotonic() > deadline:
                raise ApiError(503, f"{busy}: {holder}; try again later, or end that process")
            elif holder is not None:
                time.sleep(_POLL_S)

    def _check_lock(self) -> None:
        """Raise ApiError (503) where this process stood still for so long that another one took the lock."""
        if not self._local.lease.is_held():
            raise ApiError(503, "another process took the lock of the model store meanwhile; try again")

    def _check_blobs(self, manifest: Manifest) -> None:
        """Raise ApiError (500) unless all blobs are there with their sizes."""
        for digest, size in manifest.blobs.items():
            there = self.blobs.size(digest)
            if there != size:
                state = "is missing" if there is None else f"has {there} bytes"
                raise ApiError(500, f"blob {digest} of {size} bytes {state}; create or pull the model again")

    def _path(self, name: Name) -> Path:
        """Return where the manifest of exactly this name belongs; raise ApiError (400) for a name that is none."""
        if parse_name(name.full) != name:
            raise ApiError(400, "invalid model name")
        return self._manifests / name.host / name.namespace / name.model / name.tag

    def _drop_linked(self, name: Name) -> None:
        """Remove the link that a newer version of Ollama would take for the model, which is no longer that; OSError."""
        for host in (name.host, *((LINKED_HOST,) if name.host == DEFAULT_HOST else ())):
            linked = self.root / LINKED_MANIFESTS / host / name.namespace / name.model / name.tag
            if os.path.lexists(linked):
                linked.unlink()
                remove_empty(linked.parent, self.root / LINKED_MANIFESTS)

    def _prune(self, freed: Iterable[Digest]) -> None:
        """Remove what nothing names, `freed` however young; a failure is logged, since what was asked for is done."""
        try:
            self._check_lock()
            prune(self.root, self.blobs, self.views, set(freed))
        except (OSError, ApiError) as e:
            _log.warning("the model store could not be pruned: %s", e)


def _entries(folder: Path, depth: int, wanted: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Path]]:
    """Yield the names on the way and the path of every entry so many folders down.

    wanted: in lower case, the names on the way to go, where not all are.
    """
    try:
        children = sorted(os.listdir(folder))
    except OSError:
        return
    for child in children:
        if wanted and child.lower() != wanted[0]:
            continue
        if depth == 1:
            yield (child,), folder / child
        else:
            yield from (((child, *rest), path) for rest, path in _entries(folder / child, depth - 1, wanted[1:]))
