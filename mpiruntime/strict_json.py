"""Read a JSON object from a file that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.errors import CheckpointError

MAX_BYTES = 4 << 20


def read_object(path: Path, max_bytes: int = MAX_BYTES, max_parts: int = 200_000) -> dict[str, Any]:
    """Return the object; raise CheckpointError where the file is none, too large, or has a key twice.

    max_parts: brackets, colons and commas, which bound the memory that it takes.
    """
    try:
        if not path.is_file():  # opening a pipe would block for ever
            raise CheckpointError(f"{path} is no regular file; fetch it again")
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read: {e}") from e
    if len(raw) > max_bytes or sum(map(raw.count, (b"[", b"{", b":", b","))) > max_parts:
        raise CheckpointError(f"{path} has {len(raw)} bytes or more, and more in it than it can need; fetch it again")
    try:
        values = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is not valid JSON ({e}); fetch it again") from e
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no object; fetch it again")
    return values


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; a key that comes twice is an error, since parsers disagree on which one counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key comes twice")
    return result
