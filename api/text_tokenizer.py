"""Turn text into token ids and back; text of a user never becomes a special token."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import ByteLevel

from ollampi.api.model import Model
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.special_tokens import frame_of
from ollampi.mpiruntime.tokenizer_folder import tokenizer_errors

MAX_CHARS_PER_TOKEN = 16  # text is shorter than this per token, but for absurd text
MAX_ID = 2**31 - 1  # ids travel as int32
_IN_NO_VOCABULARY = "\U0010fffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextTokenizer:
    """A model's tokenizer; safe to use from several threads.

    make: makes one, whatever its source; file: the source's name, for messages. Raise ModelError where it cannot be
    used.
    """

    def __init__(self, make: Callable[[], Tokenizer], bos_token: str, context_length: int, file: str) -> None:
        self._file = file
        self.half_chars = context_length * MAX_CHARS_PER_TOKEN
        self._tokenizer = make()
        if self.largest_id > MAX_ID:
            raise ModelError(
                f"the model's {file} has a token of id {self.largest_id}, the limit is {MAX_ID}; copy it again"
            )
        self._plain: Tokenizer | None = None  # made when a user first writes a special token
        self._lock = threading.Lock()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.special_texts = sorted({t.content for t in added.values() if t.special and t.content}, key=len)[::-1]
        self.bos_token = bos_token
        self.vocabulary_size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        with tokenizer_errors(file):
            self._leading, self._after = frame_of(self._tokenizer)
        self._newline = self._line_break()
        self._unknown = self.special_ids.intersection(self._ids(self._tokenizer, _IN_NO_VOCABULARY))
        # Text that a normaliser changes can become a special token, and the pieces of a unigram hold special tokens.
        changed = self._tokenizer.normalizer is not None and any(t.special and t.normalized for t in added.values())
        self._sly = changed or isinstance(self._tokenizer.model, Unigram)
        self._byte_of = _byte_alphabet() if isinstance(self._tokenizer.decoder, ByteLevelDecoder) else None
        self.bytes_of = None if self._byte_of is None else _Bytes(self._tokenizer, self._byte_of, self.special_ids)

    def special_id(self, text: str) -> int | None:
        """Return the id of the special token that is written so, None where there is none."""
        found = self._tokenizer.token_to_id(text)
        return found if found in self.special_ids else None

    @property
    def largest_id(self) -> int:
        """Return the largest id that any token has; -1 without tokens."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def token_id(self, text: str) -> int | None:
        """Return the id of the token with this text, None where there is none."""
        found = self._tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def cut(self, text: str) -> str:
        """Return text without its middle where it is far too long for the context: those tokens are dropped anyhow."""
        return text if len(text) <= 2 * self.half_chars else text[: self.half_chars] + text[-self.half_chars :]

    def encode(self, text: str, behind: Sequence[int] = ()) -> list[int]:
        """Return the ids of text in which special tokens count as such; nothing is added.

        behind: the ids of the text before it, if any. Of text that is far too long for the context only both ends are
        read: the tokens that could ever be kept are the same, and a request of many megabytes takes no time. They are
        read apart, lest they meet as a special token.
        """
        if len(text) <= 2 * self.half_chars:
            return self._ids_behind(self._tokenizer, text, behind)
        head = self._ids_behind(self._tokenizer, text[: self.half_chars], behind)
        return head + self._ids_behind(self._tokenizer, text[-self.half_chars :], head)

    def encode_plain(self, text: str, behind: Sequence[int] = ()) -> list[int]:
        """Return the ids of text in which special tokens are only characters; `behind` as for encode."""
        with self._lock:
            if self._plain is None:
                with tokenizer_errors(self._file):
                    self._plain = Tokenizer.from_str(self._tokenizer.to_str())
                self._plain.encode_special_tokens = True
        ids = self._ids_behind(self._plain, text, behind)
        if len(text) > 1 and self._special(ids):  # pieces of one character are what they are
            half = len(text) // 2
            head = self.encode_plain(text[:half], behind)
            return head + self.encode_plain(text[half:], head)
        return ids

    def becomes_special(self, text: str) -> bool:
        """Return whether text without special tokens would get their ids all the same."""
        return self._sly and self._special(self._ids(self._tokenizer, text))

    def with_start(self, text: str, ids: list[int]) -> list[int]:
        """Return `ids` behind the token that the model wants at the start, unless `text` begins with it already."""
        if not self._leading or ids[: len(self._leading)] == self._leading:
            return ids
        return ids if self.bos_token and text.startswith(self.bos_token) else self._leading + ids

    def framed(self, text: str, at_most: int) -> tuple[list[int], int]:
        """Return the ids of text as one whole input, with all that its tokenizer adds, and how many it has.

        The ids are at most `at_most`: the end of the text goes. Of text far beyond the context only that much is read,
        so it has at least as many as are returned here, and more than `at_most`.
        """
        head = text[: 2 * self.half_chars]
        written = any(special in head for special in self.special_texts)
        ids = self.encode_plain(head) if written or self.becomes_special(head) else self.encode(head)
        frame = len(self._leading) + len(self._after)
        count = frame + len(ids)
        if len(head) < len(text):
            count = max(count, at_most + 1)
        return [*self._leading, *ids[: max(0, at_most - frame)], *self._after], count

    def continued(self, before: list[int], ids: list[int]) -> list[int]:
        """Return `ids` behind the tokens of an earlier text; a second start token is dropped."""
        start = len(self._leading)
        return before + (ids[start:] if ids[:start] == self._leading else ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that one token stands for, which need not be whole characters."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if found := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(found[1], 16)])
        if self._byte_of and token not in self.special_ids and all(char in self._byte_of for char in piece):
            return bytes(self._byte_of[char] for char in piece)
        return str(piece).replace("\u2581", " ").encode()

    def _ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        with tokenizer_errors(self._file):
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def _ids_behind(self, tokenizer: Tokenizer, text: str, behind: Sequence[int]) -> list[int]:
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

    def _special(self, ids: list[int]) -> bool:
        """Return whether special tokens are among ids; that of unknown text is none."""
        return not (self.special_ids - self._unknown).isdisjoint(ids)


class _Bytes(dict[int, bytes]):
    """What each token of a byte-level tokenizer adds to the bytes of a text; special ones add nothing."""

    def __init__(self, tokenizer: Tokenizer, byte_of: dict[str, int], special_ids: frozenset[int]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._byte_of = byte_of
        self._special_ids = special_ids

    def __missing__(self, token: int) -> bytes:
        """Return and keep the bytes of a token; of one with a character beyond the byte alphabet those of its text."""
        text = "" if token in self._special_ids else self._tokenizer.id_to_token(token) or ""
        own = all(char in self._byte_of for char in text)
        self[token] = raw = bytes(self._byte_of[char] for char in text) if own else text.encode()
        return raw


class Tokenizers:
    """The tokenizers in use, one per content of a model."""

    def __init__(self) -> None:
        self._known: dict[str, TextTokenizer] = {}
        self._lock = threading.Lock()

    def get(self, model: Model) -> TextTokenizer:
        """Return the model's tokenizer, read at its first use; raise ModelError."""
        with self._lock:
            if model.digest not in self._known:
                self._known[model.digest] = _tokenizer(model)
            return self._known[model.digest]


def _tokenizer(model: Model) -> TextTokenizer:
    """Return the tokenizer of a model; raise ModelError where it has more tokens than the model."""
    texts = model.texts
    try:
        tokenizer = TextTokenizer(texts.tokenizer, texts.bos_token, model.context_length, texts.file)
    except ModelError as e:
        raise ModelError(f"model {model.full_name}: {e}") from e
    size = model.text_config.get("vocab_size")
    where = "vocab_size in config.json" if model.path.is_dir() else "the number of rows of its token_embd.weight"
    if type(size) is int and tokenizer.largest_id >= size:
        raise ModelError(
            f"model {model.full_name}: {texts.file} has a token with the id {tokenizer.largest_id}, and {where}"
            f" is {size}: they belong to different models, or a token was added to one alone; copy both"
        )
    return tokenizer


def _byte_alphabet() -> dict[str, int]:
    """Return character -> byte of the byte-level alphabet: printable bytes are themselves, the rest follow U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    if set(table) != set(ByteLevel.alphabet()):
        raise ModelError("the tokenizers library uses another byte alphabet; install a tested version")
    return table
