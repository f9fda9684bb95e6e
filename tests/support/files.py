"""Write the files of model folders, and what only looks like a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# what a reader of a path would never come to the end of, by kind
ENDLESS: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


def fill(folder: Path, files: dict[str, object]) -> Path:
    """Write files: bytes, lines, or JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if not isinstance(content, bytes):
            content = ("\n".join([*content, ""]) if name.endswith(".txt") else json.dumps(content)).encode()
        (folder / name).write_bytes(content)
    return folder


def written(folder: Path, text: str | dict[str, Any], name: str = "cluster.json") -> str:
    """Return the path of a file with a text, or with an object as JSON."""
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return str(path)
