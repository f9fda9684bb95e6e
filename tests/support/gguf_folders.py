"""Model folders that become GGUF files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from ollampi.mpiruntime.tokenizer_folder import tokenizer_of
from support.checkpoints import ENCODERS, write_checkpoint
from support.gguf_files import MODELS
from support.vocabularies import byte_folder, train_pieces

VOCAB = 400
DECODERS = [name for name in MODELS if name not in ENCODERS]


def quiet(done: int, total: int) -> None:
    pass


def write_folder(
    folder: Path, tokenizer: Tokenizer | None = None, config: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """Write a random model with a tokenizer."""
    return byte_folder(write_checkpoint(folder, **{"vocab_size": VOCAB, **changes}), tokenizer, config)


def changed(folder: Path, file: str = "config.json", **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


PIECES: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.99,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


def framed(tokenizer: Tokenizer, single: str) -> Tokenizer:
    ids = [(text, tokenizer.token_to_id(text)) for text in ("<|bos|>", "<|im_end|>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def write_pieces(folder: Path, blank: bool, json_too: bool, **options: Any) -> Path:
    """Write a folder whose tokenizer is SentencePiece's, or the tokenizer.json that is made of it."""
    write_checkpoint(folder, vocab_size=900)
    data = train_pieces(**{**PIECES, "add_dummy_prefix": blank, **options})
    (folder / "tokenizer.model").write_bytes(data)
    if json_too:
        tokenizer_of(folder).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer.model").unlink()
    return folder


Change = Callable[[Path], None]
