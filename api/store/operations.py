"""Copy and delete models of the store, and take single blobs, with Ollama's answers to what cannot be done."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ollampi.api.errors import ApiError, bad_request, shown
from ollampi.api.names import parse_name
from ollampi.api.store.catalog import Store
from ollampi.api.store.creation import Creation, check_visible, create
from ollampi.api.store.digest import Digest, parse_digest
from ollampi.api.store.local import LocalStore


def copy(store: LocalStore, catalog: Store, source: str, destination: str) -> None:
    """Give a model another name; one in a folder is copied into the store. Raise ApiError, ModelError."""
    names = {"source": parse_name(source), "destination": parse_name(destination)}
    for role, text in (("source", source), ("destination", destination)):
        if names[role] is None:
            raise bad_request(f"{role} {_quoted(text)} is invalid")
    found, target = names["source"], names["destination"]
    assert found is not None
    assert target is not None
    if found.key == target.key:
        if catalog.get(source) is None:
            raise ApiError(404, f"model {_quoted(source)} not found")
        return
    if not catalog.is_fixed(found):
        with store.lock():
            manifest = store.read(found)
            if manifest is None:
                raise ApiError(404, f"model {_quoted(source)} not found")
            check_visible(catalog, target)
            store.write(target, manifest)
    else:
        for _ in create(store, catalog, Creation(target.full, from_=source)):
            pass


def delete(store: LocalStore, catalog: Store, text: str) -> None:
    """Remove a model of the store; raise ApiError: 400, 404, and 403 for one that lies in a folder."""
    if not text:
        raise bad_request("model is required")
    name = parse_name(text)
    if name is None:
        raise bad_request(f"name {_quoted(text)} is invalid")
    if catalog.is_fixed(name):
        raise ApiError(403, f"model '{shown(text)}' is in a read-only folder; remove it there")
    if store.path(name) is None or not store.remove(name):
        raise ApiError(404, f"model '{shown(text)}' not found")


def find_blob(store: LocalStore, text: str) -> Digest:
    """Return the digest of a blob that is there; raise ApiError: 400 for no digest, 404 where it is not there."""
    digest = parse_digest(text)
    if not store.blobs.has(digest):
        raise ApiError(404, f"blob {_quoted(text)} not found")
    return digest


def put_blob(store: LocalStore, text: str, chunks: Iterable[bytes]) -> bool:
    """Keep uploaded bytes; return whether they are new, without reading them where they are not.

    Raise ApiError: 400 for no digest or bytes of another one, 403 where the store cannot be written.
    """
    digest = parse_digest(text)
    if store.blobs.has(digest):
        return False
    store.blobs.put(chunks, digest)
    return True


def _quoted(text: str) -> str:
    return json.dumps(shown(text), ensure_ascii=False)
