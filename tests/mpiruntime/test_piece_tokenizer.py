"""Texts become the ids that the sentencepiece package gives them, whatever the model; damaged files are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sentencepiece
from support.vocabularies import random_texts, train_pieces, without_marks
from tokenizers import Tokenizer

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.piece_tokenizer import piece_tokenizer
from ollampi.mpiruntime.sentencepiece_model import (
    BYTE,
    CONTROL,
    MAX_PIECES,
    NORMAL,
    UNKNOWN,
    UNUSED,
    PieceModel,
    parse_pieces,
)

AS_IT_IS: dict[str, Any] = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
LLAMA: dict[str, Any] = {
    **AS_IT_IS,
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.99,
}
GEMMA: dict[str, Any] = {
    **LLAMA,
    "add_dummy_prefix": False,
    "user_defined_symbols": ["<sep>", "own_x", "\u2581\u2581", "\u2581\u2581\u2581\u2581"],
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gemma": GEMMA,
    "own pieces behind a blank": {**LLAMA, "user_defined_symbols": ["<sep>", "own_x"]},
    "no bytes": {**AS_IT_IS, "model_type": "bpe", "character_coverage": 0.98},
    "one blank": {**LLAMA, "remove_extra_whitespaces": True},
    "unigram": {**AS_IT_IS, "model_type": "unigram"},
    "unigram with bytes": {**AS_IT_IS, "model_type": "unigram", "byte_fallback": True},
}
NORMALISED: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", "byte_fallback": True},
    "unigram": {"model_type": "unigram"},
    "casefolded": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf"},
}


def built(data: bytes) -> Tokenizer:
    return piece_tokenizer(parse_pieces("tokenizer.model", data), "tokenizer.model")


def assert_same_ids(options: dict[str, Any], change: Callable[[str], str] = lambda text: text) -> None:
    """Compare 1,000 texts as ids and back; special tokens in them are text for SentencePiece."""
    data = train_pieces(**options)
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = built(data)
    tokenizer.encode_special_tokens = True

    def total(ids: list[int]) -> float:
        """Return by what a unigram chooses among ways to split a text; of two equal ones rounding decides."""
        return sum(reference.get_score(number) for number in ids)

    own = set(options.get("user_defined_symbols", ()))
    for text in map(change, random_texts(1000)):
        if text in own:
            continue  # alone and behind no blank: the piece is found at once, without the blank before it
        ids = reference.encode(text)
        found = tokenizer.encode(text).ids
        assert found == ids or (options["model_type"] == "unigram" and total(found) == pytest.approx(total(ids))), text
        assert tokenizer.decode(ids) == reference.decode(ids).replace(" \u2047 ", ""), text


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_sentencepiece(name: str) -> None:
    assert_same_ids(MODELS[name])


@pytest.mark.parametrize("name", NORMALISED)
def test_text_is_normalised_as_by_sentencepiece(name: str) -> None:
    """But for characters that combine: of several which are changed as one the library changes the first alone."""
    assert_same_ids(NORMALISED[name], without_marks)


def test_ids_of_a_copy_are_the_same() -> None:
    tokenizer = built(train_pieces(**GEMMA))
    copy = Tokenizer.from_str(tokenizer.to_str())
    for text in random_texts(200, seed=1):
        assert copy.encode(text).ids == tokenizer.encode(text).ids


def test_special_tokens_are_control_and_unknown_pieces() -> None:
    tokenizer = built(train_pieces(**GEMMA))
    added = tokenizer.get_added_tokens_decoder().values()
    assert {token.content for token in added if token.special} == {"<pad>", "<eos>", "</s>", "<s>", "<unk>"} - {"<eos>"}
    assert {token.content for token in added if not token.special} == set(GEMMA["user_defined_symbols"])
    assert tokenizer.encode("<s>x</s>").tokens == ["<s>", "x", "</s>"]


def test_damaged_files_are_refused_or_harmless() -> None:
    data = train_pieces(model_type="unigram", vocab_size=300)
    pick = random.Random(0)
    cut = [data[:end] for end in (*range(64), *(pick.randrange(len(data)) for _ in range(60)))]
    flipped = []
    for _ in range(200):
        place = pick.randrange(len(data))
        flipped.append(data[:place] + bytes([data[place] ^ 1 << pick.randrange(8)]) + data[place + 1 :])
    messages = [
        refusal(damaged) for damaged in (*cut, *flipped, b"\x0a" + b"\xff" * 8, b"\x80" * 99, b"{}", b"\x1b" * 9)
    ]
    assert len([message for message in messages if message]) > 80
    assert all(message.startswith("tokenizer.model ") and len(message) < 200 for message in messages if message)


def refusal(data: bytes) -> str:
    """Return why a file is refused; empty where it is not."""
    try:
        parse_pieces("tokenizer.model", data)
    except ModelError as e:
        return str(e)
    return ""


def pieces(*entries: tuple[str, float, int], unknown: int | None = 0, **more: Any) -> PieceModel:
    texts, scores, kinds = map(list, zip(*entries, strict=True))
    return PieceModel("BPE", texts, scores, kinds, byte_fallback=True, prefix="never", unknown=unknown, **more)  # type: ignore[arg-type]


def test_what_cannot_be_split_alike_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^f has the piece 'a' more than once"):
        piece_tokenizer(pieces(("<unk>", 0, UNKNOWN), ("a", 0, NORMAL), ("a", 0, NORMAL)), "f")
    parts = [("a", -1.0, NORMAL), ("b", -2.0, NORMAL), ("c", -3.0, NORMAL), ("ab", -4.0, UNUSED), ("abc", -5.0, NORMAL)]
    with pytest.raises(ModelError, match=r"^f makes 'abc' from an unused piece"):
        piece_tokenizer(pieces(("<unk>", 0, UNKNOWN), *parts), "f")
    with pytest.raises(ModelError, match=r"^f has a piece of 257 characters; at most 256 are possible"):
        piece_tokenizer(pieces(("<unk>", 0, UNKNOWN), ("a" * 257, 0, NORMAL)), "f")
    many = [(f"<{number}>", 0, UNUSED) for number in range(4097)]
    piece_tokenizer(pieces(("<unk>", 0, UNKNOWN), *many), "f")
    with pytest.raises(ModelError, match=r"^f has 4098 pieces that are not normal; at most 4096 are possible"):
        piece_tokenizer(replace(pieces(("<unk>", 0, UNKNOWN), *many), algorithm="Unigram"), "f")
    with pytest.raises(ModelError, match=r"it has more than 1048576 pieces"):
        parse_pieces("tokenizer.model", b"\x0a\x03\x0a\x01a" * (MAX_PIECES + 1))
    with pytest.raises(ModelError, match=r"model_type 4; known are 1 \(unigram\) and 2 \(BPE\)"):
        parse_pieces("tokenizer.model", train_pieces(model_type="char", vocab_size=200))
    with pytest.raises(ModelError, match="writes blanks in another way"):
        parse_pieces("tokenizer.model", train_pieces(model_type="bpe", treat_whitespace_as_suffix=True))


def test_odd_byte_pieces_are_harmless() -> None:
    odd = ["<0x-1>", "<0x+1>", "<0x1>", "<0xZZ>", "<0x123>", "<0x41>"]
    model = pieces(
        ("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), *((text, 0.0, BYTE) for text in odd), ("a", -1.0, NORMAL)
    )
    tokenizer = piece_tokenizer(model, "f")
    assert tokenizer.encode("A").ids == [7]
    assert tokenizer.decode([2, 5, 8, 7]) == "<0x-1><0xZZ>aA"
    assert tokenizer.decode([999, 8]) == "a"
