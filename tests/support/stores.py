"""Write blobs and manifests into a store."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ollampi.api.names import Name, parse_name
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import CONFIG_TYPE, LICENSE_TYPE, MODEL_TYPE, Layer, Manifest


def put(local: LocalStore, content: bytes, media_type: str = MODEL_TYPE, name: str = "") -> Layer:
    return Layer(media_type, local.blobs.put([content]), len(content), name)


def manifest_of(local: LocalStore, *contents: bytes) -> Manifest:
    model, *licenses = contents
    layers = [put(local, model), *(put(local, text, LICENSE_TYPE) for text in licenses)]
    return Manifest(put(local, b"{}", CONFIG_TYPE), tuple(layers))


def named(text: str) -> Name:
    name = parse_name(text)
    assert name is not None
    return name


def blob_contents(root: Path) -> set[bytes]:
    return {path.read_bytes() for path in (root / "blobs").glob("sha256-*")}


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)
