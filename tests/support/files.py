"""Write the files of model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
