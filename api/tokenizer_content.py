"""What a model's tokenizer is as the content of a tokenizer.json, and the little of it that most who ask want."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.json_file import read_json
from ollampi.mpiruntime.tokenizer_folder import tokenizer_at


def tokenizer_content(path: Path, file: str) -> dict[str, Any]:
    """Return the tokenizer of a folder or GGUF file; of one that cannot be used nothing. Raise ModelError, OSError.

    file: its name. A tokenizer.json is taken as it is, checked by nobody.
    """
    if file == "tokenizer.json":
        return read_json(path / file, {})
    try:
        made = json.loads(tokenizer_at(path).to_str())
    except ModelError:
        return {}
    return made if isinstance(made, dict) else {}


def summary_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content without what is long: its added tokens, and of its model what says of which kind it is."""
    core = content.get("model")
    kind = {key: core[key] for key in ("type", "byte_fallback") if key in core} if isinstance(core, dict) else {}
    return {"added_tokens": content.get("added_tokens"), "model": kind}
