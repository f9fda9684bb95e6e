"""What a setting can take: a number, a text, a list of texts, a flag, one of a few words."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ollampi.api.durations import span_s

Value = str | int | float | bool | list[str] | None
_END = "\0"


class Kind(Protocol):
    """Tell what a setting takes."""

    @property
    def takes(self) -> str:
        """Return it in words."""

    def parse(self, text: str) -> Value:
        """Return the value that a text stands for; raise ValueError where it stands for none."""

    def fits(self, value: Value) -> bool:
        """Return whether a value of the right type is in range."""


@dataclass(frozen=True)
class Number:
    """A number from low to high, or null where that is allowed; `note` helps to choose."""

    kind: type[int] | type[float]
    low: float
    high: float
    or_null: bool = False
    note: str = ""

    @property
    def takes(self) -> str:
        """Return it in words."""
        kind = "a whole number" if self.kind is int else "a number"
        null, note = " or null" if self.or_null else "", f" ({self.note})" if self.note else ""
        return f"{kind} from {self.low} to {self.high}{null}{note}"

    def parse(self, text: str) -> Value:
        """Return the number; raise ValueError."""
        return None if self.or_null and text == "null" else self.kind(text)

    def fits(self, value: Value) -> bool:
        """Return whether a number is in range."""
        if value is None:
            return self.or_null
        return isinstance(value, int | float) and self.low <= value <= self.high  # NaN is nowhere


def seconds(text: str) -> float:
    """Return the seconds of a number of them, or of a span with units: `90`, `90s`, `1m30s`; raise ValueError."""
    try:
        return float(text)
    except ValueError:
        return span_s(text)


@dataclass(frozen=True)
class Span:
    """A time from low to high seconds, or null or 0 where that is allowed; a number is one of seconds."""

    low: float
    high: float
    or_null: bool = False
    or_zero: bool = False

    @property
    def takes(self) -> str:
        """Return it in words."""
        more = (" or null" if self.or_null else "") + (" or 0" if self.or_zero else "")
        return f"a number from {self.low} to {self.high}{more} (seconds, or with units: 90s, 1m30s)"

    def parse(self, text: str) -> Value:
        """Return the seconds; raise ValueError."""
        return None if self.or_null and text == "null" else seconds(text)

    def fits(self, value: Value) -> bool:
        """Return whether the seconds are in range."""
        return (self.or_zero and value == 0) or Number(float, self.low, self.high, self.or_null).fits(value)


@dataclass(frozen=True)
class Text:
    """A text as it stands, with whatever characters, or null where that is allowed; quotes are taken away."""

    takes: str
    or_null: bool = False

    def parse(self, text: str) -> Value:
        """Return the text."""
        if self.or_null and text == "null":
            return None
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text

    def fits(self, value: Value) -> bool:
        """Return whether the text has any characters, none of which ends a path for the system."""
        return (bool(value) and _END not in str(value)) or (self.or_null and value is None)


@dataclass(frozen=True)
class Bytes:
    """A number of bytes with a unit, or null for what is found."""

    takes: str = "a size such as 80GiB, 512MiB or 1.5TB (1 MiB at least), or null"

    def parse(self, text: str) -> Value:
        """Return the bytes; raise ValueError."""
        if text == "null":
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
        if found is None:
            raise ValueError(text)
        base = 1024 if found[3] else 1000
        return int(float(found[1]) * base ** ("KMGT".index(found[2].upper()) + 1 if found[2] else 0))

    def fits(self, value: Value) -> bool:
        """Return whether there are any, and no absurd number of them."""
        return value is None or (isinstance(value, int) and 2**20 <= value < 2**60)


@dataclass(frozen=True)
class Texts:
    """Several texts in brackets, or one text without."""

    takes: str

    def parse(self, text: str) -> Value:
        """Return the texts; raise ValueError where a quote is not closed."""
        if not (text.startswith("[") and text.endswith("]")):
            return [text] if text else []
        parts = shlex.shlex(text[1:-1], posix=True)
        parts.whitespace, parts.whitespace_split, parts.escape, parts.commenters = ",", True, "", ""
        return [part.strip() for part in parts if part.strip()]

    def fits(self, value: Value) -> bool:
        """Return whether no text has a character that ends a path for the system."""
        return not isinstance(value, Sequence) or not any(_END in str(part) for part in value)


@dataclass(frozen=True)
class Flag:
    """True or false."""

    takes: str = "true or false"

    def parse(self, text: str) -> Value:
        """Return the flag; raise ValueError for another word."""
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"

    def fits(self, value: Value) -> bool:
        """Return whether it is a flag."""
        return isinstance(value, bool)


@dataclass(frozen=True)
class Choice:
    """One of a few words; `note` helps to choose."""

    words: tuple[str, ...]
    note: str

    @property
    def takes(self) -> str:
        """Return it in words."""
        return f"one of {', '.join(self.words)} ({self.note})"

    def parse(self, text: str) -> Value:
        """Return the word."""
        return text

    def fits(self, value: Value) -> bool:
        """Return whether it is one of the words."""
        return value in self.words
