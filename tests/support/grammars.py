"""Write models that have a tokenizer, and check texts against JSON schemas, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from support.checkpoints import write_checkpoint

END, OPEN, CLOSE = 256, 257, 258
VOCABULARY = 268  # the model has logits for some tokens that the tokenizer lacks
_SPECIAL = ["<|end|>", "<think>", "</think>", "<|user|>"]


def byte_tokenizer(merges: list[tuple[str, str]] | None = None) -> Tokenizer:
    """Return a tokenizer of single bytes, a few special tokens, and the given merges of two characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: index for index, char in enumerate(alphabet)}
    for pair in merges or []:
        vocabulary["".join(pair)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges or []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    return tokenizer


def write_speaker(folder: Path, **changes: Any) -> Path:
    """Write a small random model that has a tokenizer of bytes; return the folder."""
    write_checkpoint(folder, vocab_size=VOCABULARY, **changes)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def fits(value: Any, schema: Any) -> bool:
    """Return whether a value is valid under a schema of the keywords that the tests use."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(value, part) for part in schema["anyOf"])
    if schema["type"] == "object":
        known = schema["properties"]
        named = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(known)
        return named and all(fits(item, known[name]) for name, item in value.items())
    if schema["type"] == "array":
        sized = isinstance(value, list) and schema.get("minItems", 0) <= len(value) <= schema["maxItems"]
        return sized and all(fits(item, schema["items"]) for item in value)
    if schema["type"] == "string":
        return isinstance(value, str) and len(value) <= schema["maxLength"]
    if schema["type"] == "integer":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and schema["minimum"] <= value <= schema["maximum"]
    return value is None if schema["type"] == "null" else isinstance(value, bool)
