"""Train small tokenizers of every kind on a fixed text, and write the texts on which they are compared."""

from __future__ import annotations

import io
import json
import random
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ollampi.mpiruntime.byte_level import SPLITS


def _sentences() -> list[str]:
    """Return sentences of words that are made up, the first ones the most frequent, always the same."""
    pick = random.Random(7)
    syllables = [a + b for a in "bcdfghklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "ing", "or")]
    words = ["".join(pick.choice(syllables) for _ in range(pick.randrange(1, 4))) for _ in range(400)]
    words += ["self.write(x)", "0.25,", "(2026)", "I'll", "don't", "ÖL", "Käse", "x86_64", "→", "a/b", '"no"', "10%;"]
    weights = [1 / (place + 3) for place in range(len(words))]
    return [" ".join(pick.choices(words, weights, k=12)).capitalize() + "." for _ in range(300)]


CORPUS = [
    *_sentences(),
    *["Grüße aus Köln, 世界 und 🙂!", "naïve café ﬁne Ａ１ I'M you'LL 12345", "a<unk>b <s> x </s>  y\t\tz"] * 20,
]
_ODD = (
    *(
        "a",
        "b",
        " ",
        "  ",
        "     ",
        "\n",
        "\t",
        "\r\n",
        "0",
        "42",
        "123456",
        "'s",
        "'LL",
        "é",
        "e\u0301",
        "世",
        "界",
        "🙂",
    ),
    *("👨‍👩‍👧", "\u200d", "ﬁ", "Ａ", "١", "<s>", "</s>", "<unk>", "<0x41>", "<0x-1>", "\u00a0", "ß", "Ω", "\u3000"),
    *("\u0300", "한", "ᄒ", "ᅡ", "<", "0x", "own_x", "<sep>", "|", "#", "\x00", "\ufeff", "ǅ", "ʰ", "½", "Ⅳ"),
)


def random_texts(count: int, seed: int = 0) -> Iterator[str]:
    """Return texts of words, blanks, digits, symbols, marks and characters from anywhere below U+3000."""
    pick = random.Random(seed)
    words = " ".join(CORPUS).split()
    for _ in range(count):
        kinds = [lambda: pick.choice(words) + " ", lambda: pick.choice(_ODD), lambda: chr(pick.randrange(32, 0x3000))]
        yield "".join(pick.choices(kinds, (2, 3, 1))[0]() for _ in range(pick.randrange(30)))


def without_marks(text: str) -> str:
    """Return text without what combines, or may by now, with the character before it: marks and Hangul's parts."""
    kinds = ("Mn", "Mc", "Me", "Cn")
    joined = ("\u200d", *map(chr, range(0x1100, 0x1200)))
    return "".join(char for char in text if unicodedata.category(char) not in kinds and char not in joined)


def train_pieces(**options: Any) -> bytes:
    """Return a SentencePiece model file."""
    out = io.BytesIO()
    options = {"vocab_size": 800, "minloglevel": 2, "hard_vocab_limit": False, **options}
    if options["model_type"] == "bpe":
        del options["hard_vocab_limit"]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=out, **options)
    return out.getvalue()


@cache
def train_bytes(*regexes: str, size: int = 1000) -> tuple[dict[str, int], list[str]]:
    """Return vocabulary and merges of a byte-level BPE whose words are cut by one regex after the other."""
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut_by(*regexes), last])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    core = json.loads(tokenizer.to_str())["model"]
    return core["vocab"], [merge if isinstance(merge, str) else " ".join(merge) for merge in core["merges"]]


def cut_by(*regexes: str) -> list[pre_tokenizers.PreTokenizer]:
    """Return what cuts words by one regex after the other."""
    return [pre_tokenizers.Split(Regex(regex), "isolated") for regex in regexes]


def gguf_of_bytes(pre: str, vocabulary: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """Return a byte-level BPE as llama.cpp's converter writes it, with four tokens added: two of them special."""
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), "<|bos|>", "<|im_end|>", "<tool>", "[PAD1]"]
    count = len(vocabulary)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * count + [3, 3, 4, 5],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": count,
        "tokenizer.ggml.eos_token_id": count + 1,
    }


def gguf_of_pieces(data: bytes, own: Sequence[str] = ()) -> dict[str, Any]:
    """Return a SentencePiece model as llama.cpp's converter writes it; the user's `own` pieces get plain blanks."""
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    ids = range(model.get_piece_size())
    texts = [model.id_to_piece(number) for number in ids]
    kinds = [(model.is_unknown, 2), (model.is_control, 3), (lambda n: texts[n] in own, 4), (model.is_byte, 6)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text.replace("\u2581", " ") if text in own else text for text in texts],
        "tokenizer.ggml.scores": [model.get_score(number) for number in ids],
        "tokenizer.ggml.token_type": [next((kind for is_, kind in kinds if is_(number)), 1) for number in ids],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }


def gguf_of_tokenizer(tokenizer: Tokenizer, template: str, end: str = "<|im_end|>") -> dict[str, Any]:
    """Return a byte-level tokenizer and a chat template as the metadata of a GGUF file."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    added = tokenizer.get_added_tokens_decoder()
    tokens += [added[number].content for number in sorted(added) if number >= len(tokens)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if number in added else 1 for number in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]] or ["a b"],
        "tokenizer.ggml.eos_token_id": tokens.index(end) if end in tokens else len(tokens) - 1,
        "tokenizer.chat_template": template,
    }


def byte_tokenizer(name: str = "qwen2", size: int = 380) -> Tokenizer:
    """Return a byte-level tokenizer as a tokenizer.json has it, with tokens at the start and the end."""
    vocabulary, merges = train_bytes(*SPLITS[name].regexes, size=size)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=SPLITS[name].whole_words))  # type: ignore[arg-type]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut_by(*SPLITS[name].regexes), last])
    if SPLITS[name].composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<|bos|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return tokenizer


def byte_folder(folder: Path, tokenizer: Tokenizer | None = None, config: dict[str, Any] | None = None) -> Path:
    """Give a model folder a byte-level tokenizer and a tokenizer_config.json; return the folder."""
    (tokenizer or byte_tokenizer()).save(str(folder / "tokenizer.json"))
    told = {"eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}", **(config or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def large_byte_tokenizer(size: int = 128_000, num_merges: int = 280_147) -> dict[str, Any]:
    """Return the content of a byte-level tokenizer.json of made-up tokens, by default as large as Llama 3's."""
    pick = random.Random(5)
    short = [*"abcdefghijklmnopqrstuvwxyz\u0120", *(a + b for a in "bcdfghklmnprst\u0120" for b in "aeiou")]
    known = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *short])
    while len(known) < size:
        known["".join(pick.choices(short, k=pick.randrange(2, 5)))] = None
    cuts = ((text[:place], text[place:]) for text in known for place in range(1, len(text)))
    merges = [list(pair) for pair in cuts if pair[0] in known and pair[1] in known]
    pattern = {"Regex": SPLITS["llama-bpe"].regexes[0]}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    special = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": size + n, "content": f"<|reserved_{n}|>", **special} for n in range(256)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {text: number for number, text in enumerate(known)},
            "merges": merges[:num_merges],
        },
    }
