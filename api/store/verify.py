"""Compare every blob of the store with the digest that it is named after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from ollampi.api.names import Name
from ollampi.api.store.blobs import chunks_of
from ollampi.api.store.digest import Digest, digest_of
from ollampi.api.store.local import LocalStore
from ollampi.mpiruntime.errors import ModelError

OK, MISSING, WRONG_SIZE, WRONG_DIGEST, UNREADABLE = "ok", "missing", "wrong size", "wrong digest", "unreadable"


@dataclass(frozen=True)
class Finding:
    """What was found of one blob, or of one manifest, which has no digest to compare with.

    models: those that name it; size, found_size: bytes as the manifests say and as they are; found: the digest of the
    bytes that are there, where they were read; text: what else there is to say.
    """

    state: str
    models: tuple[str, ...]
    digest: Digest | None = None
    size: int = 0
    found_size: int | None = None
    found: Digest | None = None
    text: str = ""


def verify(store: LocalStore, name: Name | None = None) -> Iterator[Finding]:
    """Yield what is found of each blob of a model, or of all models, once however many models name it.

    All of a blob is read. Raise ModelError where there is no such model.
    """
    if name is not None and store.path(name) is None:
        raise ModelError(f"model '{name.short}' not found in the store; `ollampi verify` alone looks at all models")
    models: dict[Digest, list[str]] = {}
    sizes: dict[Digest, int] = {}
    wanted: dict[Digest, None] = {}
    for each in store.names():
        try:
            manifest = store.read(each)
        except ModelError as e:
            if name is None or each.key == name.key:
                yield Finding(UNREADABLE, (each.short,), text=str(e))
            continue
        for digest, size in manifest.blobs.items() if manifest else ():
            models.setdefault(digest, []).append(each.short)
            sizes[digest] = size
            if name is None or each.key == name.key:
                wanted[digest] = None
    for digest in wanted:
        yield _compared(store, digest, sizes[digest], tuple(models[digest]))


def _compared(store: LocalStore, digest: Digest, size: int, models: tuple[str, ...]) -> Finding:
    """Return what is found of one blob."""
    there = store.blobs.size(digest)
    if there is None:
        return Finding(MISSING, models, digest, size)
    hashed = hashlib.sha256()
    try:
        for chunk in chunks_of(store.blobs.path(digest)):
            hashed.update(chunk)
    except OSError as e:
        return Finding(UNREADABLE, models, digest, size, there, text=e.strerror or "")
    found = digest_of(hashed)
    state = WRONG_SIZE if there != size else OK if found == digest else WRONG_DIGEST
    return Finding(state, models, digest, size, there, found)
