"""Say how a model folder wants texts to become embeddings: how long they may be, and how hidden states are pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

POOLING_FILE = "1_Pooling/config.json"  # of sentence-transformers
LENGTH_FILE = "sentence_bert_config.json"
LAST_TOKEN = {"pooling_mode_lasttoken": True}  # which alone has seen the whole text in a causal model
MEAN = {"pooling_mode_mean_tokens": True}  # what sentence-transformers takes for an encoder that says nothing
_PREFIX = "pooling_mode_"
_KNOWN = {"lasttoken": "last", "mean_tokens": "mean", "cls_token": "first"}


def pooling_of(path: Path, values: dict[str, Any]) -> str:
    """Return "last", "mean" or "first" for the values of the folder's POOLING_FILE, or what names another way.

    What follows the pooling in folders of its own, a dense layer for example, is a part of the way.
    """
    steps = [key.removeprefix(_PREFIX) for key, value in values.items() if key.startswith(_PREFIX) and value is True]
    steps += [folder.name for folder in sorted(path.glob("[2-9]_*")) if not folder.name.endswith("_Normalize")]
    name = "+".join(steps) or "unknown"
    return _KNOWN.get(name, name)


def longest_input(values: dict[str, Any]) -> int | None:
    """Return how many tokens of a text count by the values of the folder's LENGTH_FILE; None where it does not say."""
    length = values.get("max_seq_length")
    return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None
