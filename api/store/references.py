"""Find the blobs that the manifests of a store name, whatever else may be wrong with those."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ollampi.api.errors import ApiError
from ollampi.api.store.digest import Digest, parse_digest
from ollampi.api.store.manifest import MAX_MANIFEST_BYTES, Manifest
from ollampi.mpiruntime.errors import ModelError

MANIFESTS = "manifests"
# Newer versions of Ollama keep links to manifests there, which are blobs, as lists of manifests may be.
# https://github.com/ollama/ollama/blob/main/manifest/manifest.go
LINKED_MANIFESTS = "manifests-v2"
LINKED_HOST = "ollama.com"  # what they call Ollama's own registry there
_DIGEST = re.compile(rb"sha256[:-]([0-9a-fA-F]{64})")


def named_digests(root: Path, blobs: Path) -> set[Digest]:
    """Return every digest that any manifest below `root` names, damaged ones too; raise OSError.

    The texts are searched too: what looks like a digest is taken for one, so that no doubt costs a blob.
    """
    found: set[Digest] = set()
    documents = manifest_files(root)
    while documents:
        path = documents.pop()
        own = _as_digest(os.path.basename(os.path.realpath(path)))
        if own is not None:
            found.add(own)
        for digest in digests_in(path):
            if digest not in found:
                found.add(digest)
                if _may_be_manifest(blobs / digest.file_name):
                    documents.append(blobs / digest.file_name)
    return found


def manifest_files(root: Path) -> list[Path]:
    """Return every file below the folders of manifests, whatever its name; raise OSError where one cannot be listed."""
    return [*_files(root / MANIFESTS), *_files(root / LINKED_MANIFESTS)]


def digests_in(path: Path) -> set[Digest]:
    """Return the digests in a manifest's file; raise OSError, but none where it has gone."""
    try:
        with path.open("rb") as file:
            raw = file.read(4 * MAX_MANIFEST_BYTES)
    except FileNotFoundError:  # a link to nothing, or deleted meanwhile
        return set()
    found = {Digest(f"sha256:{hex_digits.decode().lower()}") for hex_digits in _DIGEST.findall(raw)}
    try:
        return found | Manifest.parse(raw).blobs.keys()  # JSON may write the same characters in another way
    except ModelError:
        return found


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder; raise OSError where one cannot be listed."""

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for place, _, names in os.walk(folder, onerror=failed):
        yield from (Path(place, name) for name in names)


def _may_be_manifest(path: Path) -> bool:
    """Return whether a blob could be a manifest, which names other blobs."""
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            return False
        with path.open("rb") as file:
            start = file.read(64)
            text = start + file.read() if start.lstrip().startswith(b"{") else b""
            return b'"layers"' in text or b'"manifests"' in text
    except OSError:
        return False


def _as_digest(name: str) -> Digest | None:
    try:
        return parse_digest(name)
    except ApiError:
        return None
