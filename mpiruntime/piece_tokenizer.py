"""Build a tokenizer from the pieces of a SentencePiece model, which splits texts as SentencePiece does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, PieceModel
from ollampi.mpiruntime.special_tokens import add_tokens

_BLANK = "\u2581"
_MAX_CHARS = 256  # of a piece that is made by merges; SentencePiece itself makes 16 unless told otherwise
_MAX_CUTS = 4096


def piece_tokenizer(model: PieceModel, file: str) -> Tokenizer:
    """Return the tokenizer of a model that was read from `file`; raise ModelError."""
    ids = {text: number for number, text in enumerate(model.texts)}
    if len(ids) < len(model.texts):
        ((text, _),) = Counter(model.texts).most_common(1)
        raise ModelError(f"{file} has the piece {text!r} more than once; copy the file again")
    if (count := len(_cut_behind(model)) + len(_kept_bare(model))) > _MAX_CUTS:
        raise ModelError(f"{file} has {count} pieces that are not normal; at most {_MAX_CUTS} are possible")
    tokenizer = Tokenizer(_bpe(model, ids, file) if model.algorithm == "BPE" else _unigram(model))
    tokenizer.normalizer = normalizers.Sequence(list(_normalizers(model)))
    tokenizer.decoder = decoders.Sequence(list(_decoders(model)))
    if splits := list(_pre_tokenizers(model)):
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    add_tokens(tokenizer, _added(model), file)
    return tokenizer


def _bpe(model: PieceModel, ids: dict[str, int], file: str) -> BPE:
    unknown = None if model.unknown is None else model.texts[model.unknown]
    merges = list(_merges(model, ids, file))
    return BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)


def _merges(model: PieceModel, ids: dict[str, int], file: str) -> Iterator[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, those of the highest score first.

    SentencePiece joins the neighbours whose piece has the highest score; the library wants the pairs in that order.
    """
    parts = {text for text, kind in zip(model.texts, model.kinds, strict=True) if kind == NORMAL}
    unused = set(_of_kind(model, UNUSED))
    order = sorted(parts, key=ids.__getitem__)
    order.sort(key=lambda text: -model.scores[ids[text]])  # of equal scores the first id first
    for text in order:
        if len(text) > _MAX_CHARS:
            raise ModelError(f"{file} has a piece of {len(text)} characters; at most {_MAX_CHARS} are possible")
        lefts = [text[:cut] for cut in range(1, len(text))]
        for left in lefts:
            if left in parts and (right := text[len(left) :]) in parts:
                yield left, right
        if unused and any(left in unused or text[len(left) :] in unused for left in lefts):
            raise ModelError(f"{file} makes {text!r} from an unused piece; convert the tokenizer to tokenizer.json")


def _unigram(model: PieceModel) -> Unigram:
    vocabulary = list(zip(model.texts, model.scores, strict=True))
    return Unigram(vocabulary, unk_id=model.unknown, byte_fallback=model.byte_fallback)


def _normalizers(model: PieceModel) -> Iterator[normalizers.Normalizer]:
    """Return what makes a text ready.

    Of characters that a model's map changes as one (a letter and its mark) the library may change the first alone and
    drop the others; so do the tokenizer.json files of such models, and those of Llama, Mistral and Gemma have no map.
    """
    if model.charsmap:
        yield normalizers.Precompiled(model.charsmap)
    if model.one_blank:
        yield normalizers.Replace(Regex(r"\A +| +\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if own := _kept_bare(model):
        # The library makes these pieces ready as well, before it looks for them: they must stay as they are.
        yield normalizers.Replace(Regex(rf"\A(?!(?:{'|'.join(map(re.escape, own))})\z)"), _BLANK)
    elif model.prefix in ("special", "added"):
        yield normalizers.Prepend(_BLANK)
    yield normalizers.Replace(" ", _BLANK)


def _pre_tokenizers(model: PieceModel) -> Iterator[pre_tokenizers.PreTokenizer]:
    """Return what cuts a text before it is split into pieces.

    The library's unigram would also find control, byte and unused pieces in plain text, which SentencePiece keeps out:
    behind their first character there is a cut.
    """
    if model.prefix == "first":
        yield pre_tokenizers.Metaspace(_BLANK, prepend_scheme="first", split=False)
    if closed := _cut_behind(model):
        cuts = "|".join(f"(?<={re.escape(text[0])})(?={re.escape(text[1:])})" for text in closed)
        yield pre_tokenizers.Split(Regex(cuts), "isolated")


def _decoders(model: PieceModel) -> Iterator[decoders.Decoder]:
    yield decoders.Replace(_BLANK, " ")
    if model.byte_fallback:
        yield decoders.ByteFallback()
    yield decoders.Fuse()
    if model.prefix != "never":
        yield decoders.Strip(" ", 1, 0)


def _added(model: PieceModel) -> Iterator[tuple[int, AddedToken]]:
    """Return the pieces that are found in a text before it is split: special ones as it is, others once it is ready."""
    for number, (text, kind) in enumerate(zip(model.texts, model.kinds, strict=True)):
        if kind in (CONTROL, UNKNOWN):
            yield number, AddedToken(text, normalized=False, special=True)
        elif kind == USER_DEFINED:
            yield number, AddedToken(text, normalized=model.prefix != "added", special=False)


def _cut_behind(model: PieceModel) -> list[str]:
    """Return the pieces behind whose first character plain text is cut."""
    closed = _of_kind(model, CONTROL, UNKNOWN, UNUSED, BYTE) if model.algorithm == "Unigram" else []
    return [text for text in closed if len(text) > 1]


def _kept_bare(model: PieceModel) -> list[str]:
    """Return the pieces to which no blank is prepended when the library looks for them."""
    return _of_kind(model, USER_DEFINED) if model.prefix == "special" else []


def _of_kind(model: PieceModel, *kinds: int) -> list[str]:
    return [text for text, kind in zip(model.texts, model.kinds, strict=True) if kind in kinds]
