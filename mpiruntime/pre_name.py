"""Tell by which name GGUF files know how a byte-level tokenizer cuts texts into words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ollampi.mpiruntime.byte_level import SPLITS
from ollampi.mpiruntime.errors import ModelError

# Of names for the same way the one that is usual.
_USUAL = ("llama-bpe", "qwen2", "gpt-2", "starcoder", "tekken", "gpt-4o", "dbrx", "deepseek-r1-qwen")
_WORDS = SPLITS["gpt-2"].regexes[0]


def pre_name(core: dict[str, Any]) -> str:
    """Return the name for the normalizer, pre_tokenizer and model of a tokenizer.json; raise ModelError."""
    regexes = tuple(map(_bare, _cuts(core.get("pre_tokenizer"))))
    composed = _composes(core.get("normalizer"))
    whole_words = bool(core["model"].get("ignore_merges"))
    for name in (*_USUAL, *SPLITS):
        split = SPLITS[name]
        same = (tuple(map(_bare, split.regexes)), split.composed, split.whole_words)
        if same == (regexes, composed, whole_words):
            return name
    raise ModelError(
        f"the tokenizer cuts words by {str(regexes)[:300]} (NFC: {composed}, ignore_merges: {whole_words}), for which"
        " GGUF files have no name that is known here; serve the folder as it is"
    )


def _bare(regex: str) -> str:
    """Return a regex without a last branch for blanks, which are cut off without it as well."""
    return regex.removesuffix(r"|\s+")


def _composes(normalizer: dict[str, Any] | None) -> bool:
    """Return whether texts are composed (NFC) first; raise ModelError where something else is done to them."""
    parts = _flat(normalizer, "normalizers")
    kinds = {part["type"] for part in parts}
    if kinds - {"NFC"}:
        raise ModelError(
            f"the tokenizer changes texts by {', '.join(sorted(kinds))}; GGUF files can say NFC alone, serve the folder"
            " as it is"
        )
    return bool(kinds)


def _cuts(pre_tokenizer: dict[str, Any] | None) -> Iterator[str]:
    """Return the regexes that cut words, one after the other; raise ModelError for other ways."""
    for part in _flat(pre_tokenizer, "pretokenizers"):
        kind = part["type"]
        if kind == "ByteLevel" and not part.get("add_prefix_space"):
            if part.get("use_regex", True):
                yield _WORDS
        elif kind == "Digits":
            yield r"\p{N}" if part.get("individual_digits") else r"\p{N}+"
        elif kind == "Split" and part["behavior"] == "Isolated" and not part.get("invert"):
            pattern = part["pattern"]
            yield pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
        else:
            raise ModelError(
                f"the tokenizer cuts words by {str(part)[:200]}, which GGUF files cannot say; serve the folder as it is"
            )


def _flat(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """Return the parts of a sequence, or of a lone part, in order."""
    if part is None:
        return []
    return [each for one in part[inner] for each in _flat(one, inner)] if part["type"] == "Sequence" else [part]
