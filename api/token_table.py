"""The texts of a vocabulary's tokens, packed, and how they join to a text: all that the tokens of a stream need.

It needs no tokenizer of the tokenizers library, whose making and reading hold Python's lock for as long as they take: a
table is a few buffers, made in one process and sent to another as they are.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.pre_tokenizers import ByteLevel

from ollampi.mpiruntime.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START = "\u2581"

Message = dict[str, Any]


class TokenTable:
    """The texts of all tokens by id, and the decoder that joins them.

    ids: those that are in use, ascending; ends: where the text of each ends in `texts`, which is UTF-8; special: the
    special tokens, text -> id; decoder: the state of a decoder of the tokenizers library, empty for none.
    """

    def __init__(
        self, ids: array[int], ends: array[int], texts: bytes, special: dict[str, int], decoder: bytes
    ) -> None:
        self._ids, self._ends, self._texts = ids, ends, texts
        self.special = special
        self.special_ids = frozenset(special.values())
        self._state = decoder
        self._decoder = _decoder(decoder) if decoder else None
        self._byte_of = _byte_alphabet() if decoder and json.loads(decoder)["type"] == "ByteLevel" else None
        self.bytes_of = None if self._byte_of is None else _Bytes(self)

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocabulary: dict[str, int]) -> TokenTable:
        """Return the table of a tokenizer with this vocabulary, added tokens included, whose ids are below 2^31."""
        # What shares its text with another token, as in a Unigram, is not in the vocabulary; what shares its id is.
        dense = min(max(vocabulary.values(), default=-1) + 1, tokenizer.get_vocab_size(with_added_tokens=True))
        found = ((token, tokenizer.id_to_token(token)) for token in sorted({*vocabulary.values(), *range(dense)}))
        ids, ends, texts = array("i"), array("Q"), bytearray()
        for token, text in found:
            if text is not None:
                texts += text.encode()
                ids.append(token)
                ends.append(len(texts))
        added = tokenizer.get_added_tokens_decoder().items()
        special = {token.content: number for number, token in added if token.special}
        decoder = b"" if tokenizer.decoder is None else tokenizer.decoder.__getstate__()
        return cls(ids, ends, bytes(texts), special, decoder)

    def message(self) -> Message:
        """Return the table for `from_message` on this host."""
        packed = {"ids": self._ids.tobytes(), "ends": self._ends.tobytes(), "texts": self._texts}
        return {**packed, "special": list(self.special.items()), "decoder": self._state}

    @classmethod
    def from_message(cls, message: Message) -> TokenTable:
        """Return the table that wrote a message; its size costs no more than copies of its buffers."""
        ids, ends = array("i"), array("Q")
        ids.frombytes(message["ids"])
        ends.frombytes(message["ends"])
        return cls(ids, ends, message["texts"], dict(message["special"]), message["decoder"])

    def text_of(self, token: int) -> str | None:
        """Return the text of a token as the vocabulary has it, None where there is none."""
        place = bisect_left(self._ids, token)
        if place == len(self._ids) or self._ids[place] != token:
            return None
        return self._texts[self._ends[place - 1] if place else 0 : self._ends[place]].decode()

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, as the tokenizer itself does; special tokens are left out."""
        found = [text for token in ids if (text := self.text_of(token)) is not None and text not in self.special]
        return " ".join(found) if self._decoder is None else str(self._decoder.decode(found))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that one token stands for, which need not be whole characters."""
        piece = self.text_of(token)
        if piece is None:
            return b""
        if found := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(found[1], 16)])
        raw = None if token in self.special_ids else self.level_bytes(piece)
        return piece.replace(_WORD_START, " ").encode() if raw is None else raw

    def level_bytes(self, piece: str) -> bytes | None:
        """Return the bytes that a piece of a byte-level vocabulary writes; None where it holds another character."""
        if self._byte_of is None or any(char not in self._byte_of for char in piece):
            return None
        return bytes(self._byte_of[char] for char in piece)


class _Bytes(dict[int, bytes]):
    """What each token of a byte-level table adds to the bytes of a text; special ones add nothing."""

    def __init__(self, table: TokenTable) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, token: int) -> bytes:
        """Return and keep the bytes of a token; of one with a character beyond the byte alphabet those of its text."""
        text = "" if token in self._table.special_ids else self._table.text_of(token) or ""
        own = self._table.level_bytes(text)
        self[token] = raw = text.encode() if own is None else own
        return raw


def _decoder(state: bytes) -> decoders.Decoder:
    """Return a decoder with this state, which says of which kind it is."""
    decoder = decoders.Fuse()
    decoder.__setstate__(state)
    return decoder


def _byte_alphabet() -> dict[str, int]:
    """Return character -> byte of the byte-level alphabet: printable bytes are themselves, the rest follow U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    if set(table) != set(ByteLevel.alphabet()):
        raise ModelError("the tokenizers library uses another byte alphabet; install a tested version")
    return table
