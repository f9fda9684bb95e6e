"""Upload files to a store, and ask for models that cannot be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from ollampi.api.errors import ApiError
from ollampi.api.store.local import LocalStore
from ollampi.api.store.operations import put_blob


def upload(local: LocalStore, content: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    put_blob(local, digest, [content])
    return digest


def uploaded(local: LocalStore, folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): upload(local, path.read_bytes()) for path in files}


def refused(make: Any, **wanted: Any) -> str:
    """Return the text with which a request is refused, which is the client's fault."""
    with pytest.raises(ApiError) as caught:
        make("new", **wanted)
    assert caught.value.status == 400, caught.value
    return str(caught.value)
