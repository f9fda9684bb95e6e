"""Turn text into token ids and back; text of a user never becomes a special token."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel

from ollampi.api.model import Model
from ollampi.mpiruntime.errors import ModelError

MAX_CHARS_PER_TOKEN = 16  # text is shorter than this per token, but for absurd text
MAX_ID = 2**31 - 1  # ids travel as int32
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextTokenizer:
    """A model's tokenizer; safe to use from several threads."""

    def __init__(self, path: Path, bos_token: str, bos_token_id: int | None, context_length: int) -> None:
        self._path = path
        self.half_chars = context_length * MAX_CHARS_PER_TOKEN
        self._tokenizer = _load(path)
        self._plain: Tokenizer | None = None  # made when a user first writes a special token
        self._lock = threading.Lock()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.special_texts = sorted({t.content for t in added.values() if t.special and t.content}, key=len)[::-1]
        self.bos_token = bos_token
        self.vocabulary_size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        leading = _ids(self._tokenizer, "", add_special_tokens=True)
        self._leading = leading[:1] if leading[:1] == [bos_token_id] or len(leading) == 1 else []
        self._before, self._after = _frame(self._tokenizer)
        self._byte_of = _byte_alphabet() if isinstance(self._tokenizer.decoder, ByteLevelDecoder) else None
        self.bytes_of = None if self._byte_of is None else _Bytes(self._tokenizer, self._byte_of, self.special_ids)

    def cut(self, text: str) -> str:
        """Return text without its middle where it is far too long for the context: those tokens are dropped anyhow."""
        return text if len(text) <= 2 * self.half_chars else text[: self.half_chars] + text[-self.half_chars :]

    def encode(self, text: str) -> list[int]:
        """Return the ids of text in which special tokens count as such; nothing is added.

        Of text that is far too long for the context only both ends are read: the tokens that could ever be kept are
        the same, and a request of many megabytes takes no time. They are read apart, lest they meet as a special token.
        """
        if len(text) <= 2 * self.half_chars:
            return _ids(self._tokenizer, text)
        return _ids(self._tokenizer, text[: self.half_chars]) + _ids(self._tokenizer, text[-self.half_chars :])

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of text in which special tokens are only characters."""
        with self._lock:
            if self._plain is None:
                self._plain = _load(self._path)
                self._plain.encode_special_tokens = True
        return _ids(self._plain, text)

    def with_start(self, text: str, ids: list[int]) -> list[int]:
        """Return `ids` behind the token that the model wants at the start, unless `text` begins with it already."""
        if not self._leading or ids[:1] == self._leading:
            return ids
        return ids if self.bos_token and text.startswith(self.bos_token) else self._leading + ids

    def framed(self, text: str, at_most: int) -> tuple[list[int], int]:
        """Return the ids of text as one whole input, with all that its tokenizer adds, and how many it has.

        The ids are at most `at_most`: the end of the text goes. Of text far beyond the context only that much is read,
        so it has at least as many as are returned here, and more than `at_most`.
        """
        head = text[: 2 * self.half_chars]
        ids = self.encode_plain(head) if any(special in head for special in self.special_texts) else self.encode(head)
        frame = len(self._before) + len(self._after)
        count = frame + len(ids)
        if len(head) < len(text):
            count = max(count, at_most + 1)
        return [*self._before, *ids[: max(0, at_most - frame)], *self._after], count

    def continued(self, before: list[int], ids: list[int]) -> list[int]:
        """Return `ids` behind the tokens of an earlier text; a second start token is dropped."""
        return before + (ids[1:] if self._leading and ids[:1] == self._leading else ids)

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
                self._known[model.digest] = TextTokenizer(
                    model.tokenizer_path, model.bos_token, model.bos_token_id, model.context_length
                )
            return self._known[model.digest]


def _load(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ModelError("the model has no tokenizer.json; convert its tokenizer with transformers and copy it here")
    with _refused():
        tokenizer = Tokenizer.from_file(str(path))
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest > MAX_ID:
        raise ModelError(
            f"the model's tokenizer.json has a token of id {highest}, the limit is {MAX_ID}; copy it again"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _ids(tokenizer: Tokenizer, text: str, add_special_tokens: bool = False) -> list[int]:
    with _refused():
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after every text."""
    with _refused():
        encoding = tokenizer.encode("a", add_special_tokens=True)
    own = [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
    first, last = (own[0], own[-1]) if own else (len(encoding.ids), len(encoding.ids))
    return list(encoding.ids[:first]), list(encoding.ids[last + 1 :])


@contextmanager
def _refused() -> Iterator[None]:
    """Raise ModelError where the tokenizers library fails: with a bare Exception, or with a panic, which is none."""
    try:
        yield
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise ModelError("the model's tokenizer.json cannot be used; copy the file again") from e


def _byte_alphabet() -> dict[str, int]:
    """Return character -> byte of the byte-level alphabet: printable bytes are themselves, the rest follow U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    if set(table) != set(ByteLevel.alphabet()):
        raise ModelError("the tokenizers library uses another byte alphabet; install a tested version")
    return table
