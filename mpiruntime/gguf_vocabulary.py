"""Say in the keys of a GGUF file what the tokenizer of a Hugging Face folder is: what gguf_tokenizer reads, written.

GGUF holds pieces with scores (SentencePiece's BPE) and byte-level BPE whose words are cut in a way that has a name;
what else a tokenizer can do has no place in it. So what was written is read again and held against the tokenizer.
"""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.folder_templates import folder_templates
from ollampi.mpiruntime.gguf_fields import Value
from ollampi.mpiruntime.gguf_tokenizer import GgufVocabulary
from ollampi.mpiruntime.json_file import read_json, small_file
from ollampi.mpiruntime.pre_name import pre_name
from ollampi.mpiruntime.sentencepiece_model import (
    BYTE,
    CONTROL,
    MAX_PIECES,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    parse_pieces,
)
from ollampi.mpiruntime.special_tokens import frame_of
from ollampi.mpiruntime.tokenizer_folder import CONFIG_FILE, named_tokens, tokenizer_errors, tokenizer_of

_PREFIX = "tokenizer.ggml."
_REMEDY = "serve the folder as it is"
_BLANK = "\u2581"
_SAMPLES = (
    *("", " ", "  a", "a\n\n b\t\tc\r\n  d ", "   leading, and trailing   ", "<0x41> \x00 |#|", "ÀÉÎ ßẞ Ωω ǅ ʰ"),
    *("Hello world! I'll don't they'RE 12345 0.5", "naïve café Grüße e\u0301 ﬁ Ａ１", "\u00a0\u3000\u200d\ufeff"),
    *("世界 你好，こんにちは 한국어", "🙂👨‍👩‍👧 ½ Ⅳ ١٢٣", "def f(x):\n    return x ** 2  # y/z\\n"),
    *("<tag a='b'>&amp;</tag> {\"k\": [1]}", "SQL SELECT * FROM t;"),
)
_MADE_SAMPLES, _PIECES_OF_SAMPLE, _SPECIAL_SAMPLES = 200, 12, 64


def vocabulary_of(folder: Path, size: int) -> dict[str, Value]:
    """Return the tokenizer, its special tokens and the chat templates of a folder by key, for `size` rows of tokens.

    Raise ModelError for a tokenizer that a GGUF file cannot hold exactly.
    """
    if size > MAX_PIECES:
        raise ModelError(f"vocab_size in config.json is {size}; at most {MAX_PIECES} tokens are possible, {_REMEDY}")
    tokenizer = tokenizer_of(folder)
    values = _tokens(tokenizer, size)
    core = json.loads(tokenizer.to_str())
    values |= _pieces(folder, core, tokenizer, values) if core["model"].get("byte_fallback") else _bytes(core)
    with tokenizer_errors("tokenizer"):
        values |= _special(folder, tokenizer)
        metadata = {_PREFIX + key: value for key, value in values.items()} | _templates(folder)
        _check(tokenizer, metadata)
    return metadata


def _tokens(tokenizer: Tokenizer, size: int) -> dict[str, Value]:
    """Return texts and types of all tokens; ids without a token get one that is not used."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if max(ids.values(), default=-1) >= size:
        raise ModelError(
            f"the tokenizer has ids up to {max(ids.values())}, vocab_size in config.json is {size}; {_REMEDY}"
        )
    texts = {number: text for text, number in ids.items()}
    kinds = dict.fromkeys(texts, NORMAL)
    for number, token in tokenizer.get_added_tokens_decoder().items():
        if token.lstrip or token.rstrip or token.single_word:
            raise ModelError(
                f"token {token.content!r:.100} takes blanks beside it (lstrip, rstrip, single_word), which a GGUF file"
                f" cannot say; {_REMEDY}"
            )
        kinds[number] = CONTROL if token.special else USER_DEFINED
    return {
        "tokens": [texts.get(number, f"[PAD{number}]") for number in range(size)],
        "token_type": [kinds.get(number, UNUSED) for number in range(size)],
    }


def _bytes(core: dict[str, Any]) -> dict[str, Value]:
    """Return what byte-level BPE is beyond its tokens."""
    model = core["model"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix"):
        raise ModelError(f"a GGUF file holds no tokenizer of the kind {model['type']!r:.40} like this one; {_REMEDY}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"model": "gpt2", "pre": pre_name(core), "merges": list(merges)}


def _pieces(folder: Path, core: dict[str, Any], tokenizer: Tokenizer, tokens: dict[str, Value]) -> dict[str, Value]:
    """Return what SentencePiece's BPE is beyond its tokens: scores, and types of bytes and of the unknown piece."""
    texts, kinds = tokens["tokens"], tokens["token_type"]
    assert isinstance(texts, list)
    assert isinstance(kinds, list)
    unknown = core["model"].get("unk_token")
    for number, text in enumerate(texts):
        if isinstance(text, str) and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kinds[number] = BYTE
        elif text == unknown:
            kinds[number] = UNKNOWN
    scores = _scores_of_merges(core) if core["model"]["type"] == "BPE" else {}
    if (folder / "tokenizer.model").is_file():
        model = parse_pieces("tokenizer.model", small_file(folder / "tokenizer.model"))
        scores = dict(zip(model.texts, model.scores, strict=True)) if model.algorithm == "BPE" else {}
    if not scores:
        raise ModelError(f"a GGUF file holds of SentencePiece's tokenizers BPE alone, this one is another; {_REMEDY}")
    last = min(scores.values()) - 1  # of what is never made by merging
    blank = tokenizer.encode("a", add_special_tokens=False).tokens[:1]
    found: dict[str, Value] = {
        "model": "llama",
        "pre": "default",
        "scores": [float(scores.get(str(text), last)) for text in texts],
        "token_type": kinds,
        "add_space_prefix": bool(blank and blank[0].startswith(_BLANK)),
    }
    place = None if unknown is None else tokenizer.token_to_id(unknown)
    return found if place is None else {**found, "unknown_token_id": place}


def _scores_of_merges(core: dict[str, Any]) -> dict[str, float]:
    """Return a score for each piece that is made by merging: the sooner, the higher."""
    scores: dict[str, float] = {}
    for place, merge in enumerate(core["model"]["merges"]):
        scores.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), -float(place))
    return scores


def _special(folder: Path, tokenizer: Tokenizer) -> dict[str, Value]:
    """Return the tokens around texts and those that end answers."""
    names = named_tokens(read_json(folder / CONFIG_FILE, {}))
    config = read_json(folder / "config.json", {})
    told = {**config, **read_json(folder / "generation_config.json", {})}
    before, after = frame_of(tokenizer)
    start = _ids(told.get("bos_token_id"))
    bos = before[:1] or [n for n in [tokenizer.token_to_id(names.get("bos_token", ""))] if n is not None] or start
    named = [n for n in [tokenizer.token_to_id(names.get("eos_token", ""))] if n is not None]
    ends = list(dict.fromkeys([*after, *named, *_ids(told.get("eos_token_id"))]))
    if before not in ([], bos[:1]) or after not in ([], ends[:1]):
        raise ModelError(
            f"tokens {before} and {after} stand around texts, a GGUF file can say one on each side; {_REMEDY}"
        )
    values: dict[str, Value] = {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    values |= dict(zip(("bos_token_id",), bos, strict=False))
    if len(ends) > 3:
        raise ModelError(f"tokens {ends} end answers, a GGUF file can name 3; {_REMEDY}")
    values |= dict(zip(("eos_token_id", "eot_token_id", "eom_token_id"), ends, strict=False))
    padding = tokenizer.token_to_id(names.get("pad_token", ""))
    return values if padding is None else {**values, "padding_token_id": padding}


def _ids(value: object) -> list[int]:
    """Return ids that are written as one number, a list, or not at all."""
    return [item for item in (value if isinstance(value, list) else [value]) if type(item) is int and item >= 0]


def _templates(folder: Path) -> dict[str, Value]:
    """Return the chat templates by key."""
    configured = read_json(folder / CONFIG_FILE, {}).get("chat_template")
    found = folder_templates(folder, configured)
    keys: dict[str, Value] = {
        "tokenizer.chat_template" + ("" if name == "default" else f".{name}"): text for name, text in found.items()
    }
    others: list[Value] = [name for name in found if name != "default"]
    return {**keys, "tokenizer.chat_templates": others} if others else keys


def _check(tokenizer: Tokenizer, metadata: dict[str, Value]) -> None:
    """Raise ModelError where the keys make other ids of a text than the tokenizer does."""
    vocabulary = GgufVocabulary(metadata)
    found = vocabulary.tokenizer()
    for text in _texts(tokenizer):
        ids, theirs = tokenizer.encode(text).ids, found.encode(text).ids
        if ids != theirs:
            raise ModelError(
                f"from a GGUF file the text {text!r:.200} would be the tokens {str(theirs)[:100]}, the folder's"
                f" tokenizer makes it {str(ids)[:100]}; {_REMEDY}"
            )


def _texts(tokenizer: Tokenizer) -> list[str]:
    """Return fixed texts of many kinds, runs of the tokenizer's own tokens, and its added tokens between words."""
    pick = random.Random(0)
    added = tokenizer.get_added_tokens_decoder()
    plain = sorted(number for number in tokenizer.get_vocab().values() if number not in added)
    made = [
        tokenizer.decode(pick.choices(plain, k=_PIECES_OF_SAMPLE), skip_special_tokens=False)
        for _ in range(_MADE_SAMPLES if plain else 0)
    ]
    around = [f"Hi{token.content} there\n{token.content}a" for token in islice(added.values(), _SPECIAL_SAMPLES)]
    return [*_SAMPLES, *made, *around]
