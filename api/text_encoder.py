"""Turn texts into token ids with a tokenizer of the tokenizers library; and what is known of that tokenizer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram

from ollampi.api.token_table import TokenTable
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.special_tokens import frame_of
from ollampi.mpiruntime.tokenizer_folder import tokenizer_errors

MAX_ID = 2**31 - 1  # ids travel as int32
_IN_NO_VOCABULARY = "\U0010fffd"

Piece = tuple[str, bool]  # a text, and whether special tokens in it are only characters


@dataclass(frozen=True)
class TextFacts:
    """What never changes of a tokenizer.

    largest_id: -1 without tokens; leading, after: the ids that it puts around every text; is_sly: text without special
    tokens may get their ids all the same.
    """

    table: TokenTable
    vocabulary_size: int
    largest_id: int
    leading: list[int]
    after: list[int]
    is_sly: bool

    def message(self) -> dict[str, Any]:
        """Return the facts for `facts_of` on this host."""
        return {**vars(self), "table": self.table.message()}


def facts_of(message: dict[str, Any]) -> TextFacts:
    """Return the facts that wrote a message."""
    return TextFacts(**{**message, "table": TokenTable.from_message(message["table"])})


class TextEncoder:
    """The tokenizer that `make` returns; safe to use from several threads, which hold Python's lock only for a moment.

    file: its source's name, for messages. Raise ModelError where it cannot be used.
    """

    def __init__(self, make: Callable[[], Tokenizer], file: str) -> None:
        self._file = file
        self._tokenizer = tokenizer = make()
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        largest = max(vocabulary.values(), default=-1)
        if largest > MAX_ID:
            raise ModelError(f"the model's {file} has a token of id {largest}, the limit is {MAX_ID}; copy it again")
        self._plain: Tokenizer | None = None  # made when a user first writes a special token
        self._lock = threading.Lock()
        with tokenizer_errors(file):
            leading, after = frame_of(tokenizer)
        table = TokenTable.of(tokenizer, vocabulary)
        self._newline = self._line_break()
        self._special_ids = table.special_ids.difference(self._ids(tokenizer, _IN_NO_VOCABULARY))
        # Text that a normaliser changes can become a special token, and the pieces of a unigram hold special tokens.
        added = tokenizer.get_added_tokens_decoder().values()
        changed = tokenizer.normalizer is not None and any(t.special and t.normalized for t in added)
        size = int(tokenizer.get_vocab_size(with_added_tokens=True))
        is_sly = changed or isinstance(tokenizer.model, Unigram)
        self.facts = TextFacts(table, size, largest, leading, after, is_sly)

    def encode(self, pieces: Sequence[Piece], behind: bool) -> list[int]:
        """Return the ids of texts that follow each other; nothing is added.

        Each is read by itself, so that no special token is made of two. behind: whether there is text before them.
        """
        ids: list[int] = []
        for text, is_plain in pieces:
            ids += self._plain_ids(text, behind or bool(ids)) if is_plain else self._ids_of(text, behind or bool(ids))
        return ids

    def becomes_special(self, text: str) -> bool:
        """Return whether text without special tokens would get their ids all the same."""
        return self.facts.is_sly and self._has_special(self._ids(self._tokenizer, text))

    def token_id(self, text: str) -> int | None:
        """Return the id of the token with this text, None where there is none."""
        found = self._tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def _ids_of(self, text: str, behind: bool) -> list[int]:
        return self._ids_behind(self._tokenizer, text, behind)

    def _plain_ids(self, text: str, behind: bool) -> list[int]:
        """Return the ids of text in which special tokens are only characters."""
        with self._lock:
            if self._plain is None:
                with tokenizer_errors(self._file):
                    self._plain = Tokenizer.from_str(self._tokenizer.to_str())
                self._plain.encode_special_tokens = True
        ids = self._ids_behind(self._plain, text, behind)
        if len(text) > 1 and self._has_special(ids):  # pieces of one character are what they are
            half = len(text) // 2
            head = self._plain_ids(text[:half], behind)
            return head + self._plain_ids(text[half:], behind or bool(head))
        return ids

    def _ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Return the ids of text; a batch lets go of Python's lock meanwhile, a single text would not."""
        with tokenizer_errors(self._file):
            return list(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _ids_behind(self, tokenizer: Tokenizer, text: str, behind: bool) -> list[int]:
        """Return the ids of text; a tokenizer that begins a text with a blank reads it behind a line break instead."""
        if not behind or self._newline is None:
            return self._ids(tokenizer, text)
        ids = self._ids(tokenizer, f"\n{text}")
        size = len(self._newline)
        return ids[size:] if ids[:size] == self._newline else self._ids(tokenizer, text)

    def _line_break(self) -> list[int] | None:
        """Return the ids of a line break where the tokenizer puts a blank before texts, and None elsewhere."""
        alone, more = self._ids(self._tokenizer, "\n"), self._ids(self._tokenizer, "\nx")
        apart = bool(alone) and more[: len(alone)] == alone
        return alone if apart and more[len(alone) :] != self._ids(self._tokenizer, "x") else None

    def _has_special(self, ids: list[int]) -> bool:
        """Return whether special tokens are among ids; that of unknown text is none."""
        return not self._special_ids.isdisjoint(ids)
