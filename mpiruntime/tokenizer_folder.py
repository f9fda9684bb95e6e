"""Make the tokenizer of a Hugging Face model folder from whichever files it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ollampi.mpiruntime.byte_level import SPLITS, Split, byte_level
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.gguf_header import is_gguf, read_gguf
from ollampi.mpiruntime.gguf_tokenizer import GgufVocabulary
from ollampi.mpiruntime.json_file import read_json, small_file
from ollampi.mpiruntime.piece_tokenizer import piece_tokenizer
from ollampi.mpiruntime.sentencepiece_model import CONTROL, UNKNOWN, USER_DEFINED, parse_pieces
from ollampi.mpiruntime.special_tokens import add_tokens, frame_texts
from ollampi.mpiruntime.tokenizer_file import REMEDY, tokenizer_file
from ollampi.mpiruntime.word_pieces import word_pieces

CONFIG_FILE = "tokenizer_config.json"
# By tokenizer_class in tokenizer_config.json; how the classes of transformers split words.
_SPLIT_OF_CLASS = {
    "GPT2Tokenizer": "gpt-2",
    "CodeGenTokenizer": "gpt-2",
    "GPTNeoXTokenizer": "gpt-2",
    "Qwen2Tokenizer": "qwen2",
}


def tokenizer_of(folder: Path) -> Tokenizer:
    """Return a new tokenizer, made from the folder's files; raise ModelError that names the file."""
    file = tokenizer_file(folder)
    if not file.is_file():
        raise ModelError(f"the folder has no tokenizer; {REMEDY}")
    config = read_json(folder / CONFIG_FILE, {})
    with tokenizer_errors(file.name):
        tokenizer = _MAKERS[file.name](file, config)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def tokenizer_at(path: Path) -> Tokenizer:
    """Return a new tokenizer of the model that is a folder or a GGUF file; raise ModelError, OSError."""
    return tokenizer_of(path) if path.is_dir() else GgufVocabulary(read_gguf(path).metadata).tokenizer()


def tokenizer_json(file: Path) -> str:
    """Return the tokenizer that `file` decides as the text of a tokenizer.json; raise ModelError, OSError."""
    if file.name == "tokenizer.json":
        return file.read_text()
    return tokenizer_at(file if is_gguf(file) else file.parent).to_str()


def named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens that a tokenizer_config.json names, such as bos_token, by name."""
    more = config.get("extra_special_tokens")
    entries = {**(more if isinstance(more, dict) else {}), **config}
    texts = {key: token_text(value) for key, value in entries.items() if key.endswith("_token")}
    return {key: text for key, text in texts.items() if text}


def token_text(value: object) -> str:
    """Return a token that is written as text or as {"content": text}."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


@contextmanager
def tokenizer_errors(name: str) -> Iterator[None]:
    """Raise ModelError where the tokenizers library fails: with a bare Exception, or with a panic, which is none."""
    try:
        yield
    except (ModelError, OSError):
        raise
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise ModelError(f"the model's {name} cannot be used; copy the file again") from e


def _from_json(file: Path, config: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_file(str(file))


def _from_pieces(file: Path, config: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer of a SentencePiece model; tokenizer_config.json tells of blanks and start tokens."""
    pieces = parse_pieces(file.name, small_file(file))
    known = {number for number, kind in enumerate(pieces.kinds) if kind in (CONTROL, USER_DEFINED, UNKNOWN)}
    added = list(_added(file.parent, config))
    special = {number for number, token in added if token.special and number < len(pieces.texts)}
    kinds = [CONTROL if n in special and kind == USER_DEFINED else kind for n, kind in enumerate(pieces.kinds)]
    if pieces.prefix != "never" and config.get("add_prefix_space") is False:
        pieces = replace(pieces, prefix="never")
    if pieces.prefix == "special" and config.get("legacy") is False:
        pieces = replace(pieces, prefix="first")
    tokenizer = piece_tokenizer(replace(pieces, kinds=kinds), file.name)
    add_tokens(tokenizer, (entry for entry in added if entry[0] not in known), CONFIG_FILE)
    before = [pieces.bos] if pieces.bos is not None and config.get("add_bos_token", True) else []
    after = [pieces.eos] if pieces.eos is not None and config.get("add_eos_token", False) else []
    if before or after:
        frame_texts(tokenizer, before, after)
    return tokenizer


def _from_merges(file: Path, config: dict[str, Any]) -> Tokenizer:
    """Return the byte-level BPE tokenizer of vocab.json and merges.txt, which is split as its class says."""
    name = str(config.get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast")
    if name not in _SPLIT_OF_CLASS:
        known = ", ".join(_SPLIT_OF_CLASS)
        raise ModelError(
            f"{CONFIG_FILE} has tokenizer_class {name!r:.100}, and how it splits words is known only of {known}:"
            " make a tokenizer.json with transformers"
        )
    split: Split = SPLITS[_SPLIT_OF_CLASS[name]]
    vocabulary = read_json(file)
    if any(type(number) is not int or not 0 <= number < 2**31 for number in vocabulary.values()):
        raise ModelError(f"{file.name} must give each token a number; copy the file again")
    merges = list(_merges(file.parent / "merges.txt"))
    tokenizer = byte_level(vocabulary, merges, split, "merges.txt", blank_first=config.get("add_prefix_space") is True)
    add_tokens(tokenizer, _added(file.parent, config), CONFIG_FILE)
    bos = tokenizer.token_to_id(token_text(config.get("bos_token")))
    if config.get("add_bos_token") is True and bos is not None:
        frame_texts(tokenizer, [bos], [])
    return tokenizer


def _from_words(file: Path, config: dict[str, Any]) -> Tokenizer:
    """Return the WordPiece tokenizer of vocab.txt, one token a line."""
    lines = _text(file).split("\n")
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(lines) if line or number < len(lines) - 1}
    names = {key: token_text(config.get(f"{key}_token")) or f"[{key.upper()}]" for key in ("unk", "cls", "sep")}
    missing = [text for text in names.values() if text not in vocabulary]
    if missing:
        raise ModelError(f"{file.name} has no token {missing[0]!r:.100}; copy the file again")
    accents = config.get("strip_accents")
    tokenizer = word_pieces(
        vocabulary,
        names["unk"],
        lowercase=config.get("do_lower_case", True) is True,
        strip_accents=accents if isinstance(accents, bool) else None,
        cut_chinese=config.get("tokenize_chinese_chars", True) is True,
    )
    texts = [
        *names.values(),
        *(token_text(config.get(f"{key}_token")) or f"[{key.upper()}]" for key in ("pad", "mask")),
    ]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in texts if text in vocabulary])
    add_tokens(tokenizer, _added(file.parent, config), CONFIG_FILE)
    frame_texts(tokenizer, [vocabulary[names["cls"]]], [vocabulary[names["sep"]]])
    return tokenizer


_MAKERS: dict[str, Callable[[Path, dict[str, Any]], Tokenizer]] = {
    "tokenizer.json": _from_json,
    "tokenizer.model": _from_pieces,
    "vocab.json": _from_merges,
    "vocab.txt": _from_words,
}


def _merges(file: Path) -> Iterator[tuple[str, str]]:
    """Return the pairs of a merges.txt, whose first line may name a version."""
    for number, line in enumerate(_text(file).splitlines()):
        parts = line.split(" ")
        if not line or (number == 0 and line.startswith("#version")):
            continue
        if len(parts) != 2:
            raise ModelError(f"line {number + 1} of {file.name} must hold two parts; copy the file again")
        yield parts[0], parts[1]


def _text(file: Path) -> str:
    try:
        return small_file(file).decode()
    except UnicodeDecodeError as e:
        raise ModelError(f"{file.name} is not UTF-8; copy the file again") from e


def _added(folder: Path, config: dict[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    """Return the added tokens of tokenizer_config.json, or of the older added_tokens.json."""
    more = config.get("additional_special_tokens")
    special = {*named_tokens(config).values(), *map(token_text, more if isinstance(more, list) else [])}
    entries = config.get("added_tokens_decoder")
    if not isinstance(entries, dict):
        entries = {number: text for text, number in read_json(folder / "added_tokens.json", {}).items()}
    for key, value in entries.items():
        text = token_text(value)
        if not str(key).isdecimal() or not text:
            raise ModelError(
                f"{CONFIG_FILE} or added_tokens.json has {key!r:.40} as an id; ids are numbers with a text"
            )
        flags = value if isinstance(value, dict) else {"special": text in special}
        wanted = {name: flags.get(name) is True for name in ("single_word", "lstrip", "rstrip", "special")}
        yield int(key), AddedToken(text, normalized=flags.get("normalized", not wanted["special"]) is True, **wanted)
