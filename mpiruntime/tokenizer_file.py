"""Find the file of a model folder that decides its tokenizer."""

from __future__ import annotations

from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
REMEDY = (
    "of tokenizer.json, tokenizer.model, vocab.json with merges.txt, and vocab.txt none is there:"
    " copy the one that belongs to the model"
)


def tokenizer_file(folder: Path) -> Path:
    """Return the file from which the tokenizer of a folder or GGUF file is made.

    Where a folder has none, tokenizer.json, which is none.
    """
    if folder.is_file():
        return folder
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"):
        if (folder / name).is_file() and (name != "vocab.json" or (folder / "merges.txt").is_file()):
            return folder / name
    return folder / "tokenizer.json"
