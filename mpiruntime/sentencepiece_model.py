"""Read a SentencePiece model file: protobuf, with the fields of google/sentencepiece's sentencepiece_model.proto.

The reader is our own: the format needs a page, the tokenizers library does the rest, and the package that reads it
would parse the bytes of strangers in C++, in the process that answers HTTP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ollampi.mpiruntime.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # GGUF files use the same numbers
Prefix = Literal["never", "first", "special", "added"]
_ALGORITHMS: dict[int, Literal["Unigram", "BPE"]] = {1: "Unigram", 2: "BPE"}
MAX_PIECES = 1 << 20
_MAX_PIECE_BYTES = 1 << 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class PieceModel:
    """The pieces of a SentencePiece model by id, and how text is made ready for them.

    prefix: where a blank is put before text: nowhere, before the first part of it alone, before every part that lies
    between special tokens, or between any added tokens, those that a user defined included; one_blank: whether runs of
    blanks are one blank, and none remain at the ends; unknown, bos, eos: ids.
    """

    algorithm: Literal["Unigram", "BPE"]
    texts: list[str]
    scores: list[float]
    kinds: list[int]
    byte_fallback: bool
    prefix: Prefix = "special"
    one_blank: bool = False
    charsmap: bytes = b""
    unknown: int | None = None
    bos: int | None = None
    eos: int | None = None


class _Damaged(ValueError):
    """The bytes are no message of this format."""


def parse_pieces(name: str, data: bytes) -> PieceModel:
    """Return the model in the bytes of the file `name`; raise ModelError."""
    try:
        return _model(name, data)
    except (_Damaged, UnicodeDecodeError, struct.error) as e:
        raise ModelError(f"{name} is no SentencePiece model ({e}); copy the file again") from e


def _model(name: str, data: bytes) -> PieceModel:
    texts: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normaliser: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            text, score, kind = _piece(_bytes(value))
            texts.append(text)
            scores.append(score)
            kinds.append(kind)
            if len(texts) > MAX_PIECES:
                raise _Damaged(f"it has more than {MAX_PIECES} pieces")
        elif number == 2:
            trainer.update(_fields(_bytes(value)))
        elif number == 3:
            normaliser.update(_fields(_bytes(value)))
    if not texts:
        raise _Damaged("it has no pieces")
    algorithm = _ALGORITHMS.get(_integer(trainer, 3, 1))
    if algorithm is None:
        raise ModelError(f"{name} has model_type {_integer(trainer, 3, 1)}; known are 1 (unigram) and 2 (BPE)")
    if not _integer(normaliser, 5, 1) or _integer(trainer, 24, 0):
        raise ModelError(
            f"{name} writes blanks in another way than at the start of words; convert it to tokenizer.json"
        )
    return PieceModel(
        algorithm,
        texts,
        scores,
        kinds,
        byte_fallback=bool(_integer(trainer, 35, 0)),
        prefix="special" if _integer(normaliser, 3, 1) else "never",
        one_blank=bool(_integer(normaliser, 4, 1)),
        charsmap=_bytes(normaliser.get(2, b"")),
        unknown=_place(trainer, 40, 0, len(texts)),
        bos=_place(trainer, 41, 1, len(texts)),
        eos=_place(trainer, 42, 2, len(texts)),
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    """Return text, score and kind of a piece."""
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode()
        elif number == 2:
            (score,) = struct.unpack("<f", _bytes(value))
        elif number == 3:
            kind = value if isinstance(value, int) else -1
    if not text or len(data) > _MAX_PIECE_BYTES or not NORMAL <= kind <= BYTE or not abs(score) < 1e30:
        raise _Damaged("a piece has no text, or a score or type that cannot be")
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Return number and value of each field of a message: varints as int, all else as bytes."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise _Damaged(f"wire type {kind}")
        if size > end - at:
            raise _Damaged("a field is longer than the file")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise _Damaged("a number has no end")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _Damaged("a number where bytes belong")
    return value


def _integer(message: dict[int, int | bytes], number: int, default: int) -> int:
    value = message.get(number, default)
    if isinstance(value, bytes):
        raise _Damaged("bytes where a number belongs")
    return value


def _place(message: dict[int, int | bytes], number: int, default: int, count: int) -> int | None:
    """Return the id of a piece, or None where the model has none: it writes -1, which is a huge number here."""
    value = _integer(message, number, default)
    return value if value < count else None
