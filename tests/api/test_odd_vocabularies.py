"""Odd vocabularies are refused or harm nothing: no token becomes a byte that it is not (llama.cpp#25969)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollampi.api.text_encoder import TextEncoder
from ollampi.api.text_tokenizer import TextTokenizer
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.tokenizer_folder import tokenizer_of

BYTES = {**{f"<0x{i:02X}>": i for i in range(256)}, "a": 256, "b": 257, "ab": 258}


def write(folder: Path, vocab: dict[str, Any]) -> Path:
    """Write a tokenizer that falls back to byte tokens, as SentencePiece's do."""
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    merges = [["a", "b"]] if "ab" in vocab else []
    model = {"type": "BPE", "byte_fallback": True, "unk_token": None, "vocab": vocab, "merges": merges}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "decoder": decoder, "model": model}))
    return path


def read(file: Path) -> TextTokenizer:
    """Return the tokenizer in a file."""
    return TextTokenizer(TextEncoder(lambda: tokenizer_of(file.parent), file.name), "", 64)


@pytest.mark.parametrize("odd", ["<0x-1>", "<0x100>", "<0xGG>", "<0x>", "<0x 1>", "<0x1>", "<0x٣٣>", "<0x41", "0x41>"])
def test_what_is_no_byte_token_stays_text(tmp_path: Path, odd: str) -> None:
    tokenizer = read(write(tmp_path, {**BYTES, odd: 259}))
    assert tokenizer.token_bytes(259) == odd.encode()
    assert tokenizer.token_bytes(0x41) == b"A"
    assert tokenizer.decode(tokenizer.encode("abé\0")) == "abé\0"


@pytest.mark.parametrize(
    "more", [{"x": 256, "y": 0}, {"x": 5000, "y": 70_000}, {"x": 2**31 - 1}, {"": 259}, {"\0": 259}]
)
def test_gaps_and_ids_that_come_twice_harm_nothing_else(tmp_path: Path, more: dict[str, int]) -> None:
    tokenizer = read(write(tmp_path, {**BYTES, **more}))
    ids = tokenizer.encode("ab é x y \0")
    assert tokenizer.decode(tokenizer.encode("abé")) == "abé"
    assert all(isinstance(tokenizer.token_bytes(token), bytes) for token in [*ids, 300, 69_999, 2**31 - 1])


@pytest.mark.parametrize("number", [-1, 1.5, "7", None, [], True, 2**31, 2**32 - 1, 2**32, 2**64])
def test_ids_that_are_none_are_refused(tmp_path: Path, number: Any) -> None:
    with pytest.raises(ModelError, match=r"tokenizer.json (cannot be used|has a token of id)"):
        read(write(tmp_path, {**BYTES, "x": number}))


@pytest.mark.parametrize("vocab", [{}, {"a": 0}])
def test_a_vocabulary_without_bytes_gives_what_it_has(tmp_path: Path, vocab: dict[str, int]) -> None:
    tokenizer = read(write(tmp_path, vocab))
    assert tokenizer.decode(tokenizer.encode("a<0x41>é")) in ("", "a")
