"""Read the small files of a model folder, none of which has been checked by anybody."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from ollampi.mpiruntime.errors import ModelError

MAX_JSON_BYTES = 64 << 20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON object in a file, or `default` where there is no file; raise ModelError, OSError."""
    if default is not None and not path.is_file():
        return default
    raw = small_file(path)
    try:
        text = raw.decode()
        values = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(values, ensure_ascii=False).encode()  # a ValueError where one half has no other
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path.name} is not valid JSON in UTF-8; copy the file again") from e
    if not isinstance(values, dict):
        raise ModelError(f"{path.name} must hold a JSON object; copy the file again")
    return values


def small_file(path: Path) -> bytes:
    """Return the content of a regular file of no absurd size; raise ModelError, OSError."""
    if not path.is_file():
        raise ModelError(f"{path.name} is no regular file; copy it again")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path.name} is larger than {MAX_JSON_BYTES} bytes; copy the model again")
    return path.read_bytes()


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    """Return a number that can be written as JSON again; 1e999 cannot."""
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)
