"""Build the tokenizer that a GGUF file describes in its metadata; names and defaults are those of llama.cpp."""

from __future__ import annotations

from array import array
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ollampi.mpiruntime.byte_level import SPLITS, byte_level
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.piece_tokenizer import piece_tokenizer
from ollampi.mpiruntime.sentencepiece_model import BYTE, CONTROL, MAX_PIECES, NORMAL, UNKNOWN, USER_DEFINED, PieceModel
from ollampi.mpiruntime.special_tokens import add_tokens, frame_texts
from ollampi.mpiruntime.word_pieces import word_pieces

_PREFIX = "tokenizer.ggml."
_WORD_START = "\u2581"
_DEFAULT_IDS = {  # where the file has no key
    "llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
    "bert": {"bos_token_id": 101, "seperator_token_id": 102, "unknown_token_id": 100},
    "gpt2": {},
}
# Tokens that end an answer wherever they are: files often name but one of theirs.
_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
)


class GgufVocabulary:
    """The tokenizer part of a GGUF file's metadata: key -> value, lists as lists or arrays.

    The constructor raises ModelError, with the key, for what cannot be used.
    """

    def __init__(self, metadata: dict[str, Any]) -> None:
        self._metadata = metadata
        self.kind = str(metadata.get(f"{_PREFIX}model"))
        if self.kind not in _DEFAULT_IDS:
            known = ", ".join(_DEFAULT_IDS)
            missing = metadata.get(f"{_PREFIX}model") is None
            told = "is missing: the file has no tokenizer" if missing else f"is {self.kind!r:.100}"
            raise ModelError(f"{_PREFIX}model {told}; known are {known}: take another file of the model")
        texts = self._list("tokens", str)
        if not texts or any(type(text) is not str for text in texts):
            raise ModelError(f"{_PREFIX}tokens must be a list of texts; copy the file again")
        if len(texts) > MAX_PIECES:
            raise ModelError(f"{_PREFIX}tokens has {len(texts)} entries; at most {MAX_PIECES} are possible")
        self.tokens = [text or f"[EMPTY_{number}]" for number, text in enumerate(texts)]
        self.ids = {text: number for number, text in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens):
            twice = next(text for number, text in enumerate(self.tokens) if self.ids[text] != number)
            raise ModelError(f"{_PREFIX}tokens has {twice!r:.100} twice; copy the file again")
        self.kinds = self._list("token_type", int) or [NORMAL] * len(self.tokens)
        self._check_length("token_type", self.kinds)
        for text in _ENDS:  # some converters write another type, and nobody's text may end an answer
            if text in self.ids:
                self.kinds[self.ids[text]] = CONTROL
        self.bos = self._token("bos_token_id")
        self.eos = self._token("eos_token_id")

    def tokenizer(self) -> Tokenizer:
        """Return a new tokenizer; raise ModelError."""
        if self.kind == "llama":
            return self._framed(self._pieces(), starts=True)
        if self.kind == "bert":
            return self._words()
        name = self._metadata.get(f"{_PREFIX}pre")
        split = SPLITS.get(name) if isinstance(name, str) else None
        if split is None:
            known = ", ".join(sorted(SPLITS))
            told = "is missing, as in files of older converters" if name is None else f"is {name!r:.100}"
            raise ModelError(f"{_PREFIX}pre {told}: fetch a newer file of the model, or convert it; known are {known}")
        merges = [tuple(merge.split(" ", 1)) for merge in self._list("merges", str)]
        if any(len(pair) != 2 for pair in merges):
            raise ModelError(f"{_PREFIX}merges must hold two parts each; copy the file again")
        tokenizer = byte_level(self.ids, merges, split, f"{_PREFIX}merges")
        add_tokens(tokenizer, self._added(), f"{_PREFIX}tokens")
        return self._framed(tokenizer, starts=split.starts)

    @property
    def ends(self) -> list[int]:
        """Return the ids of all tokens that end an answer."""
        named = [self.eos, self._token("eot_token_id"), self._token("eom_token_id")]
        found = [self.ids[text] for text in _ENDS if text in self.ids]
        return list(dict.fromkeys(number for number in [*named, *found] if number is not None))

    @property
    def infill(self) -> tuple[str, str, str]:
        """Return the tokens before a prefix, before a suffix and before what is between; empty for what is no token."""
        keys = (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))  # new and old names
        found = [
            self._metadata.get(f"{_PREFIX}{new}_token_id", self._metadata.get(f"{_PREFIX}{old}_token_id"))
            for new, old in keys
        ]
        usable = [number if type(number) is int and 0 <= number < len(self.tokens) else None for number in found]
        return self.text(usable[0]), self.text(usable[1]), self.text(usable[2])

    def text(self, number: int | None) -> str:
        """Return the text of a token; of none an empty one."""
        return "" if number is None else self.tokens[number]

    def templates(self) -> dict[str, str]:
        """Return the chat templates by name; what is no text is left out."""
        prefix = "tokenizer.chat_template"
        named = {
            "default" if key == prefix else key[len(prefix) + 1 :]: value
            for key, value in self._metadata.items()
            if key == prefix or key.startswith(f"{prefix}.")
        }
        return {name: value for name, value in named.items() if isinstance(value, str) and value}

    def _pieces(self) -> Tokenizer:
        """Return the tokenizer of a SentencePiece model: BPE by scores, blanks before text behind any added token."""
        scores = [float(score) for score in self._list("scores", float)]
        self._check_length("scores", scores)
        model = PieceModel(
            "BPE",
            self.tokens,
            scores,
            self.kinds,
            byte_fallback=BYTE in self.kinds,
            prefix="added" if self._flag("add_space_prefix", True) else "never",
            unknown=self._token("unknown_token_id"),
        )
        return piece_tokenizer(model, f"{_PREFIX}tokens")

    def _words(self) -> Tokenizer:
        """Return the tokenizer of a WordPiece model: here word starts are marked, elsewhere continuations are."""
        vocabulary = {self._word_piece(text): number for text, number in self.ids.items()}
        if len(vocabulary) < len(self.tokens):
            raise ModelError(f"{_PREFIX}tokens has a word twice, with and without its mark; copy the file again")
        unknown, start = self._token("unknown_token_id"), self.bos
        end = self._token("seperator_token_id")
        if unknown is None or start is None or end is None:
            raise ModelError(
                f"{_PREFIX}unknown_token_id, bos_token_id or seperator_token_id is no token; convert again"
            )
        tokenizer = word_pieces(vocabulary, self.tokens[unknown], lowercase=True)
        add_tokens(tokenizer, self._added(), f"{_PREFIX}tokens")
        frame_texts(tokenizer, [start], [end])
        return tokenizer

    def _word_piece(self, text: str) -> str:
        if text.startswith(_WORD_START) and len(text) > 1:
            return text[1:]
        bare = self.kinds[self.ids[text]] in (CONTROL, UNKNOWN, USER_DEFINED) or (text[0] == "[" and text[-1] == "]")
        return text if bare else f"##{text}"

    def _added(self) -> list[tuple[int, AddedToken]]:
        special = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
        return [
            (number, AddedToken(text, normalized=False, special=special[kind]))
            for number, (text, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in special
        ]

    def _framed(self, tokenizer: Tokenizer, starts: bool) -> Tokenizer:
        """Return the tokenizer, which puts the start and the end token around texts where the file wants it."""
        before = [self._needed("bos_token_id", self.bos)] if self._flag("add_bos_token", starts) else []
        after = [self._needed("eos_token_id", self.eos)] if self._flag("add_eos_token", False) else []
        if before or after:
            frame_texts(tokenizer, before, after)
        return tokenizer

    def _needed(self, key: str, number: int | None) -> int:
        if number is None:
            raise ModelError(f"{_PREFIX}{key} is missing, and texts need that token; convert the model again")
        return number

    def _token(self, key: str) -> int | None:
        """Return the id under a key, None where there is none; raise ModelError where no token has it."""
        number = self._metadata.get(_PREFIX + key)
        if number is None:
            number = _DEFAULT_IDS[self.kind].get(key)
            return number if number is not None and number < len(self.tokens) else None
        if type(number) is not int or not 0 <= number < len(self.tokens):
            raise ModelError(f"{_PREFIX}{key} is {number!r:.100}; it must be one of {len(self.tokens)} tokens")
        return number

    def _flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(_PREFIX + key, default)
        if type(value) is not bool:
            raise ModelError(f"{_PREFIX}{key} is {value!r:.100}; it must be true or false")
        return value

    def _list(self, key: str, kind: type) -> list[Any]:
        value = self._metadata.get(_PREFIX + key, [])
        numbers = (int, float) if kind is float else kind
        if not isinstance(value, list | tuple | array) or not all(isinstance(item, numbers) for item in value):
            raise ModelError(f"{_PREFIX}{key} must be a list of {kind.__name__}; copy the file again")
        return list(value)

    def _check_length(self, key: str, values: list[Any]) -> None:
        if len(values) != len(self.tokens):
            raise ModelError(
                f"{_PREFIX}{key} has {len(values)} values for {len(self.tokens)} tokens; copy the file again"
            )
