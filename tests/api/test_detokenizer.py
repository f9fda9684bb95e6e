"""Check that pieces of text are whole characters and that joined they are the whole text, up to a stop string."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from ollampi.api.detokenizer import StopFilter, WindowDetokenizer, detokenizer
from ollampi.api.text_encoder import TextEncoder
from ollampi.api.text_tokenizer import TextTokenizer
from ollampi.api.thinking import ThinkSplitter
from ollampi.mpiruntime.tokenizer_folder import tokenizer_of

ALPHABET = "ab <\n.äß€世界🙂🏳️‍🌈👩‍👧\u0301\u200d\ufffd\u2581"


def pieces_of(tokenizer, ids, before=(), kind=detokenizer):
    answer = kind(tokenizer, list(before))
    return [*(answer.feed(i) for i in ids), answer.flush()]


def test_random_unicode(text_tokenizer):
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices(ALPHABET, k=rng.randint(0, 60)))
        ids = text_tokenizer.encode(text)
        pieces = pieces_of(text_tokenizer, ids, text_tokenizer.encode("Köln"))
        assert "".join(pieces) == text_tokenizer.decode(ids) == text
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", [detokenizer, WindowDetokenizer])
def test_random_tokens(text_tokenizer, kind):
    rng = random.Random(2)
    for _ in range(300):
        ids = [rng.randrange(text_tokenizer.vocabulary_size) for _ in range(rng.randint(0, 80))]
        assert "".join(pieces_of(text_tokenizer, ids, kind=kind)) == text_tokenizer.decode(ids)


def test_random_bytes_and_odd_tokens(tokenizer, tmp_path):
    """Tokens beyond the byte alphabet, ids beyond the vocabulary, and every kind of broken UTF-8."""
    own = Tokenizer.from_str(tokenizer.to_str())
    own.add_tokens([AddedToken(text) for text in ("a b", "世界", "\u0120x y", "▁c", "<0x41>", "é")])
    own.add_special_tokens([AddedToken("<｜end｜>", special=True)])
    own.save(str(tmp_path / "tokenizer.json"))
    text = TextTokenizer(TextEncoder(lambda: tokenizer_of(tmp_path), "tokenizer.json"), "", 4096)
    assert text.bytes_of is not None
    size = text.vocabulary_size
    single = [i for i in range(size) if len(text.token_bytes(i)) == 1]
    rng = random.Random(4)
    for _ in range(2000):
        among = rng.choice([single, [i for i in single if text.token_bytes(i) >= b"\x80"], range(size + 3)])
        ids = [rng.choice([rng.choice(among), rng.randrange(size - 8, size + 1)]) for _ in range(rng.randint(0, 12))]
        assert "".join(pieces_of(text, ids)) == text.decode(ids)


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Fuse(),
        decoders.WordPiece(cleanup=True),
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip("a", 1, 0)]),
    ],
)
def test_other_decoders_keep_the_window(tokenizer, tmp_path, decoder):
    own = Tokenizer.from_str(tokenizer.to_str())
    own.decoder = decoder
    own.save(str(tmp_path / "tokenizer.json"))
    text = TextTokenizer(TextEncoder(lambda: tokenizer_of(tmp_path), "tokenizer.json"), "", 4096)
    assert text.bytes_of is None
    assert isinstance(detokenizer(text, []), WindowDetokenizer)


def test_invalid_bytes_are_not_held_for_ever(text_tokenizer):
    broken = next(i for i in range(text_tokenizer.vocabulary_size) if text_tokenizer.token_bytes(i) == b"\x80")
    answer = detokenizer(text_tokenizer, [])
    said = [answer.feed(broken) for _ in range(100)]
    assert len("".join(said)) >= 99
    assert len("".join(said) + answer.flush()) == 100


def test_special_tokens_are_skipped(text_tokenizer):
    ids = text_tokenizer.encode("Hello<|im_end|> dog<|end|>")
    assert "".join(pieces_of(text_tokenizer, ids)) == "Hello dog"


def test_sentencepiece_style(tmp_path):
    vocab = {"<unk>": 0, "▁Hello": 1, "▁world": 2, "!": 3} | {f"<0x{b:02X}>": 4 + b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = TextTokenizer(TextEncoder(lambda: tokenizer_of(tmp_path), "tokenizer.json"), "", 4096)
    euro = [4 + b for b in "€🙂".encode()]
    pieces = pieces_of(text, [2, 3, *euro, 1], before=[1])
    assert "".join(pieces) == " world!€🙂 Hello"
    assert not any("\ufffd" in piece for piece in pieces)
    assert text.token_bytes(4 + 0x80) == b"\x80"
    assert text.token_bytes(1) == b" Hello"


def test_every_token_has_its_bytes(text_tokenizer):
    text = "Grüße, 世界 🙂\n"
    assert b"".join(text_tokenizer.token_bytes(i) for i in text_tokenizer.encode(text)) == text.encode()
    assert text_tokenizer.token_bytes(10**6) == b""


def test_stop_strings_wherever_pieces_are_cut():
    rng = random.Random(3)
    for _ in range(2000):
        text = "".join(rng.choices("ab", k=rng.randint(0, 20)))
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3))]
        stop = StopFilter(stops)
        said, rest = "", text
        while rest and not stop.stopped:
            size = rng.randint(1, 4)
            said, rest = said + stop.feed(rest[:size]), rest[size:]
        stopped = stop.stopped
        said += stop.flush()
        assert stopped == any(s in text for s in stops)
        assert text.startswith(said)
        assert not any(s in said for s in stops)
        if not stopped:
            assert said == text


def test_stop_holds_back_only_what_may_become_one():
    stop = StopFilter(["<end>"])
    assert stop.feed("a<e") == "a"
    assert stop.feed("x<") == "<ex"
    assert stop.feed("end> more") == ""
    assert stop.stopped


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "inside", "thinking", "content"),
    [
        ("<think>\nA</think>\n\nB", False, "A", "B"),
        ("A</think>B</think>", True, "A", "B</think>"),
        ("  <th is not a tag", False, "", "  <th is not a tag"),
        ("never closed", True, "never closed", ""),
        ("<thin", False, "", "<thin"),
    ],
)
def test_think_tags(size, text, inside, thinking, content):
    splitter = ThinkSplitter(inside)
    parts = [splitter.feed(text[i : i + size]) for i in range(0, len(text), size)] + [splitter.flush()]
    assert "".join(p[0] for p in parts).lstrip() == thinking
    assert "".join(p[1] for p in parts) == content
