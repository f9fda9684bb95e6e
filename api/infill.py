"""Fill in the middle: the tokens between which a model writes what stands between two texts.

The tokens and their order are those that each family was trained with: Code Llama's and Codestral's are written down in
Meta's codellama and mistral-common, the others in the models' cards; GGUF's keys in llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from ollampi.api.errors import bad_request
from ollampi.mpiruntime.json_file import small_file

MAX_MARKS = 10_000
_SUFFIX_SHARE = 4  # of a context that both texts overfill the suffix gets a fourth, as llama.cpp gives it


class Encoder(Protocol):
    """What is needed of a model's tokenizer."""

    half_chars: int

    def token_id(self, text: str) -> int | None:
        """Return the id of the token with this text, None where there is none."""

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]], behind: Sequence[int] = ()) -> list[int]:
        """Return the ids of texts, each of them read by itself and, where it says so, without special tokens."""

    def with_start(self, text: str, ids: list[int]) -> list[int]:
        """Return ids behind the token that the model wants at the start."""


@dataclass(frozen=True)
class Infill:
    """The texts of a family's tokens: before the prefix, before the suffix, and where the model goes on (may be empty).

    ends: tokens that end the answer besides the model's own; suffix_first: the suffix stands before the prefix;
    blank: a blank belongs before the prefix, which the tokenizer puts there.
    """

    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...] = ()
    suffix_first: bool = False
    blank: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Return the texts of the tokens that a prompt holds."""
        return tuple(text for text in (self.prefix, self.suffix, self.middle) if text)

    @property
    def template(self) -> str:
        """Return the prompt as a template of Go, as Ollama's models have it."""
        return self._joined("{{ .Prompt }}", "{{ .Suffix }}").replace("\u2581", " ").strip()

    def is_said_by(self, render: Callable[[str, str], str]) -> bool:
        """Return whether what renders a prefix and a suffix makes the same prompt, which needs no reading then."""
        own = self._joined("P", "S").replace("\u2581", " ").strip()
        return render("P", "S").strip() == own

    def prompt(self, encoder: Encoder, before: str, behind: str, room: int | None) -> tuple[str, list[int]]:
        """Return the prompt and its ids, without the far ends of the texts where they have more than `room` ids.

        Text of a user never becomes a token of the family. Raise ApiError (400) where it holds too many of them, and
        where the model lacks one, ModelError where its tokenizer cannot be used.
        """
        ids: dict[str, int] = {}
        for mark in self.marks:
            number = encoder.token_id(mark)
            if number is None:
                raise bad_request(f"the model's tokenizer has no token {mark}; leave out the suffix")
            ids[mark] = number
        before, behind = before[-encoder.half_chars :], behind[: encoder.half_chars]
        start = encoder.with_start("", [])
        left, right = self._plain(encoder, before, ()), self._plain(encoder, behind, (0,))
        if room is not None:
            left, right = _fitting(left, right, max(0, room - len(start) - len(ids)))
        parts = [[ids[self.prefix], *left], [ids[self.suffix], *right]]
        first, second = parts[::-1] if self.suffix_first else parts
        return self._joined(before, behind), [*start, *first, *second, *([ids[self.middle]] if self.middle else [])]

    def end_ids(self, encoder: Encoder) -> tuple[int, ...]:
        """Return the ids of the tokens that end an answer besides the model's own."""
        found = (encoder.token_id(text) for text in (*self.ends, *self.marks))
        return tuple(number for number in found if number is not None)

    def _joined(self, before: str, behind: str) -> str:
        parts = [f"{self.prefix}{' ' if self.blank else ''}{before}", f"{self.suffix}{behind}"]
        return "".join(parts[::-1] if self.suffix_first else parts) + self.middle

    def _plain(self, encoder: Encoder, text: str, behind: Sequence[int]) -> list[int]:
        """Return the ids of text, read in pieces so that no token of the family is whole in one."""
        marks = "|".join(map(re.escape, sorted({*self.marks, *self.ends}, key=len, reverse=True)))
        cuts = [found.start() + 1 for found in re.finditer(marks, text)]
        if len(cuts) > MAX_MARKS:
            raise bad_request(f"the text holds more than {MAX_MARKS} special tokens of the model; leave some out")
        pieces = [(text[start:end], True) for start, end in pairwise([0, *cuts, len(text)])]
        return encoder.encode_pieces(pieces, behind)


FAMILIES = (
    Infill(  # Qwen 2.5 Coder, CodeGemma
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
    ),
    Infill("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<|endoftext|>", "<fim_pad>", "<file_sep>")),  # StarCoder
    Infill("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<|endoftext|>", "<fim-pad>")),  # SantaCoder
    Infill("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ("<|EOT|>", "<｜end▁of▁sentence｜>")),  # DeepSeek
    Infill("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",), blank=True),  # Code Llama
    Infill("[PREFIX]", "[SUFFIX]", "", suffix_first=True, blank=True),  # Codestral
)


def find_infill(has: Callable[[str], bool]) -> Infill | None:
    """Return the tokens of the first family of which the model has all."""
    return next((family for family in FAMILIES if all(map(has, family.marks))), None)


def named_infill(prefix: str, suffix: str, middle: str) -> Infill | None:
    """Return what tokens mean that a file names as those of the prefix, the suffix and the middle; None without all."""
    if not prefix or not suffix or not middle:
        return None
    known = (family for family in FAMILIES if family.prefix == prefix and family.suffix == suffix)
    return next(known, Infill(prefix, suffix, middle))


def folder_infill(file: Path, config: dict[str, Any]) -> Infill | None:
    """Return the tokens that a model folder has, by its tokenizer_config.json or else the tokenizer's file itself.

    No tokenizer is built and no large JSON parsed: the file is searched for the texts. Raise ModelError, OSError.
    """
    added = config.get("added_tokens_decoder")
    if isinstance(added, dict) and added:
        texts = {token.get("content") for token in added.values() if isinstance(token, dict)}
        return find_infill(texts.__contains__)
    content = small_file(file)
    return find_infill(lambda text: text.encode() in content or _escaped(text) in content)


def _escaped(text: str) -> bytes:
    r"""Return text as JSON in ASCII has it."""
    return text.encode("ascii", "backslashreplace")


def _fitting(left: list[int], right: list[int], room: int) -> tuple[list[int], list[int]]:
    """Return the end of the prefix and the beginning of the suffix that fit."""
    right = right[: max(room // _SUFFIX_SHARE, room - len(left))]
    return left[max(0, len(left) + len(right) - room) :], right
