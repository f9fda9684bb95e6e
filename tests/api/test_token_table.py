"""Tables of tokens write the same text as the tokenizers that they were made from, whatever their decoder."""

from __future__ import annotations

import json
import random

import msgpack
import pytest
from support.vocabularies import large_byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models

from ollampi.api.token_table import TokenTable

DECODERS = {
    "none": None,
    "bytes": decoders.ByteLevel(),
    "bytes and more": decoders.Sequence([decoders.ByteLevel(), decoders.Strip("a", 1, 0)]),
    "metaspace": decoders.Metaspace(),
    "metaspace kept": decoders.Metaspace(prepend_scheme="never"),
    "pieces": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "words": decoders.WordPiece(cleanup=True),
    "words as they are": decoders.WordPiece("@@", cleanup=False),
    "ctc": decoders.CTC(),
    "suffix": decoders.BPEDecoder("</w>"),
    "fused": decoders.Fuse(),
}
WORDS = [
    "",
    "a",
    "▁a",
    "▁",
    "##b",
    "b</w>",
    "@@c",
    "Ġx",
    "é",
    "Ã©",
    "世界",
    "'s",
    ".",
    " n't",
    "<pad>",
    "|",
    "\0",
    "\ufffd",
]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def sent(table: TokenTable) -> TokenTable:
    """Return a table as another process gets it."""
    return TokenTable.from_message(msgpack.unpackb(msgpack.packb(table.message())))


def tables(tokenizer: Tokenizer) -> list[TokenTable]:
    """Return the table of a tokenizer, here and in another process."""
    table = TokenTable.of(tokenizer, tokenizer.get_vocab(with_added_tokens=True))
    return [table, sent(table)]


def make(kind: str, decoder: decoders.Decoder | None) -> Tokenizer:
    """Return a tokenizer with gaps, ids that come twice, texts that come twice, and added tokens."""
    texts = [*WORDS, *BYTES]
    if kind == "unigram":
        model = models.Unigram([(text, -1.0) for text in [*texts, "a", "b"]], 0, byte_fallback=True)
    else:
        known = {text: number for number, text in enumerate(texts)} | {"far": 70_000, "twice": 5}
        model = models.BPE(known, [], byte_fallback=True) if kind == "bpe" else models.WordLevel(known, "a")
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("▁a"), AddedToken("", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>"), AddedToken("a b"), AddedToken("é", special=False)])
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


@pytest.mark.parametrize("kind", ["bpe", "unigram", "words"])
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_random_tokens_become_the_same_text(kind, decoder):
    tokenizer = make(kind, decoder)
    pick = random.Random(kind)
    size = tokenizer.get_vocab_size()
    odd = [70_000, 69_999, size, size + 1, 2**31 - 1, 5]
    for table in tables(tokenizer):
        assert all(table.text_of(token) == tokenizer.id_to_token(token) for token in [*range(size + 2), *odd])
        for _ in range(500):
            among = pick.choice([range(len(WORDS)), range(size), [*range(size - 6, size), *odd]])
            ids = [pick.choice(among) for _ in range(pick.randrange(12))]
            assert table.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_special_tokens_are_known_by_text_and_id():
    tokenizer = make("bpe", decoders.ByteLevel())
    for table in tables(tokenizer):
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        assert table.special_ids == special
        assert table.special["<s>"] == tokenizer.token_to_id("<s>")


def test_a_tokenizer_without_tokens():
    for table in tables(Tokenizer(models.BPE())):
        assert table.text_of(0) is None
        assert (table.decode([0, 1]), table.token_bytes(0), table.bytes_of) == ("", b"", None)


def test_a_table_of_made_up_tokens():
    content = large_byte_tokenizer(size=3000)
    tokenizer = Tokenizer.from_str(json.dumps(content))
    pick = random.Random(1)
    for table in tables(tokenizer):
        for _ in range(200):
            ids = [pick.randrange(3300) for _ in range(pick.randrange(30))]
            assert table.decode(ids) == tokenizer.decode(ids)
            assert b"".join(table.bytes_of[token] for token in ids).decode("utf-8", "replace") == tokenizer.decode(ids)
