"""Say how a model folder wants hidden states to become an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

POOLING_FILE = "1_Pooling/config.json"  # of sentence-transformers
LAST_TOKEN = {"pooling_mode_lasttoken": True}  # which alone has seen the whole text in a causal model
_PREFIX = "pooling_mode_"
_KNOWN = {"lasttoken": "last", "mean_tokens": "mean"}


def pooling_of(path: Path, values: dict[str, Any]) -> str:
    """Return "last" or "mean" for the values of the folder's POOLING_FILE, or what names another way.

    What follows the pooling in folders of its own, a dense layer for example, is a part of the way.
    """
    steps = [key.removeprefix(_PREFIX) for key, value in values.items() if key.startswith(_PREFIX) and value is True]
    steps += [folder.name for folder in sorted(path.glob("[2-9]_*")) if not folder.name.endswith("_Normalize")]
    name = "+".join(steps) or "unknown"
    return _KNOWN.get(name, name)
