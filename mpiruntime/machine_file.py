"""Keep what was measured of this machine in a file of JSON, beside what was measured of others."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ollampi.kernels import native


def processor() -> str:
    """Return what a machine computes with: its processor, instructions, and the versions of torch and the kernels.

    Nothing where the processor cannot be told.
    """
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
        level = native.LEVEL_NAMES[native.level()] if native.library() else "no library"
        return f"{model}, {level}, torch {torch.__version__}, {native.INTERFACE}"
    return ""


def read_entry(folder: Path | None, name: str, key: str) -> Any:
    """Return what the file `name` in a folder has under a key, None where that is nothing or cannot be read."""
    return None if folder is None else _entries(folder / name).get(key)


def write_entry(folder: Path, name: str, key: str, entry: Any, valid: Callable[[Any], bool]) -> None:
    """Add an entry to the file; others that are valid stay. A folder that cannot be written is left as it is.

    Another process may do so at the same time: then the entry of one of them is lost.
    """
    file, own = folder / name, folder / f".{Path(name).stem}-{secrets.token_hex(4)}"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        others = {key: entry for key, entry in _entries(file).items() if valid(entry)}
        try:
            own.write_text(json.dumps({**others, key: entry}, indent=1))
            os.replace(own, file)
        finally:
            own.unlink(missing_ok=True)


def _entries(file: Path) -> dict[str, Any]:
    """Return all that a file has, nothing where it is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        read = json.loads(file.read_text()) if file.is_file() else None  # opening a pipe would block for ever
        if isinstance(read, dict):
            return read
    return {}
