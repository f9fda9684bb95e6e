"""Read a JSON object from a file that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.errors import CheckpointError

MAX_BYTES = 64 << 20  # an index of 100 000 tensors has 20 MB


def read_object(path: Path) -> dict[str, Any]:
    """Return the object; raise CheckpointError where the file is none, too large, or has a key twice."""
    try:
        if not path.is_file():  # opening a pipe would block for ever
            raise CheckpointError(f"{path} is no regular file; fetch it again")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read: {e}") from e
    if len(raw) > MAX_BYTES:
        raise CheckpointError(f"{path} has more than {MAX_BYTES} bytes, which is the limit")
    return parse_object(str(path), raw)


def parse_object(what: str, raw: bytes) -> dict[str, Any]:
    """Return the object that `raw` is; raise CheckpointError with `what` it is of."""
    try:
        values = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{what} is not valid JSON ({e}); fetch the file again") from e
    if not isinstance(values, dict):
        raise CheckpointError(f"{what} is no object; fetch the file again")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; a key that comes twice is an error, since parsers disagree on which one counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key comes twice")
    return result
