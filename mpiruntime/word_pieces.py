"""Build WordPiece tokenizers, as BERT and its kin have them."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece


def word_pieces(
    vocabulary: dict[str, int],
    unknown: str,
    lowercase: bool,
    strip_accents: bool | None = None,
    cut_chinese: bool = True,
) -> Tokenizer:
    """Return the tokenizer of a vocabulary in which "##" marks what continues a word; accents go with the case."""
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(True, cut_chinese, strip_accents, lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
