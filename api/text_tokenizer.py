"""Turn text into token ids and back; text of a user never becomes a special token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ollampi.api.text_encoder import Piece, TextFacts

MAX_CHARS_PER_TOKEN = 16  # text is shorter than this per token, but for absurd text


class Encoder(Protocol):
    """What turns texts into ids, here or in another process; each may raise ModelError."""

    @property
    def facts(self) -> TextFacts:
        """Return what never changes."""
        ...

    def encode(self, pieces: Sequence[Piece], behind: bool) -> list[int]:
        """Return the ids of texts that follow each other, each read by itself."""
        ...

    def becomes_special(self, text: str) -> bool:
        """Return whether text without special tokens would get their ids all the same."""
        ...

    def token_id(self, text: str) -> int | None:
        """Return the id of the token with this text, None where there is none."""
        ...


class TextTokenizer:
    """A model's tokenizer; safe to use from several threads. Ids become text without its encoder being asked."""

    def __init__(self, encoder: Encoder, bos_token: str, context_length: int) -> None:
        self._encoder = encoder
        self._facts = facts = encoder.facts
        self._table = facts.table
        self.half_chars = context_length * MAX_CHARS_PER_TOKEN
        self.special_ids = self._table.special_ids
        self.special_texts = sorted(filter(None, self._table.special), key=len)[::-1]
        self.bos_token = bos_token
        self.vocabulary_size = facts.vocabulary_size
        self.largest_id = facts.largest_id
        self.bytes_of = self._table.bytes_of

    def special_id(self, text: str) -> int | None:
        """Return the id of the special token that is written so, None where there is none."""
        return self._table.special.get(text)

    def token_id(self, text: str) -> int | None:
        """Return the id of the token with this text, None where there is none; raise ModelError."""
        return self._encoder.token_id(text)

    def cut(self, text: str) -> str:
        """Return text without its middle where it is far too long for the context: those tokens are dropped anyhow."""
        return text if len(text) <= 2 * self.half_chars else text[: self.half_chars] + text[-self.half_chars :]

    def encode(self, text: str, behind: Sequence[int] = ()) -> list[int]:
        """Return the ids of text in which special tokens count as such; nothing is added.

        behind: the ids of the text before it, if any. Of text that is far too long for the context only both ends are
        read: the tokens that could ever be kept are the same, and a request of many megabytes takes no time. They are
        read apart, lest they meet as a special token. Raise ModelError.
        """
        return self.encode_pieces([(text, False)], behind)

    def encode_plain(self, text: str, behind: Sequence[int] = ()) -> list[int]:
        """Return the ids of text in which special tokens are only characters; `behind` as for encode."""
        return self.encode_pieces([(text, True)], behind)

    def encode_pieces(self, pieces: Sequence[Piece], behind: Sequence[int] = ()) -> list[int]:
        """Return the ids of texts that follow each other, each read by itself as encode or encode_plain does."""
        short: list[Piece] = []
        for text, is_plain in pieces:
            if is_plain or len(text) <= 2 * self.half_chars:
                short.append((text, is_plain))
            else:
                short += [(text[: self.half_chars], False), (text[-self.half_chars :], False)]
        return self._encoder.encode(short, bool(behind))

    def becomes_special(self, text: str) -> bool:
        """Return whether text without special tokens would get their ids all the same; raise ModelError."""
        return self._facts.is_sly and self._encoder.becomes_special(text)

    def with_start(self, text: str, ids: list[int]) -> list[int]:
        """Return `ids` behind the token that the model wants at the start, unless `text` begins with it already."""
        leading = self._facts.leading
        if not leading or ids[: len(leading)] == leading:
            return ids
        return ids if self.bos_token and text.startswith(self.bos_token) else leading + ids

    def framed(self, text: str, at_most: int) -> tuple[list[int], int]:
        """Return the ids of text as one whole input, with all that its tokenizer adds, and how many it has.

        The ids are at most `at_most`: the end of the text goes. Of text far beyond the context only that much is read,
        so it has at least as many as are returned here, and more than `at_most`. Raise ModelError.
        """
        head = text[: 2 * self.half_chars]
        written = any(special in head for special in self.special_texts)
        ids = self.encode_plain(head) if written or self.becomes_special(head) else self.encode(head)
        leading, after = self._facts.leading, self._facts.after
        frame = len(leading) + len(after)
        count = frame + len(ids)
        if len(head) < len(text):
            count = max(count, at_most + 1)
        return [*leading, *ids[: max(0, at_most - frame)], *after], count

    def continued(self, before: list[int], ids: list[int]) -> list[int]:
        """Return `ids` behind the tokens of an earlier text; a second start token is dropped."""
        leading = self._facts.leading
        return before + (ids[len(leading) :] if ids[: len(leading)] == leading else ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        return self._table.decode(ids)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that one token stands for, which need not be whole characters."""
        return self._table.token_bytes(token)
