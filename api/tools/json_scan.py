"""Follow JSON as it is written, so that its end, or what cannot be JSON, is seen at once."""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_DEPTH = 200
_BLANKS = " \n\r\t"
_CLOSERS = {"{": "}", "[": "]"}
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_SCALAR_CHARS = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzE")
_SCALAR_STARTS = frozenset("-0123456789tfn")
_HEX = frozenset("0123456789abcdefABCDEF")


class NotACall(Exception):
    """What looked like a call is none."""


class JsonScan:
    """Take one JSON object, a character at a time; line breaks within strings are let pass, as models write them.

    check: is asked for each key of the outermost object, and again with its value where that is a string; both as they
    are written. It raises NotACall for what is of no interest.
    """

    def __init__(self, check: Callable[[str, str | None], None] | None = None) -> None:
        self._chars: list[str] = []
        self._check = check
        self._open: list[str] = []
        self._expects = "object"
        self._start = -1  # of the string or scalar that is being taken
        self._in_string = False
        self._escape = 0  # characters of an escape sequence that are still to come; -1 right behind the backslash
        self._key = ""

    @property
    def text(self) -> str:
        """Return all that was taken."""
        return "".join(self._chars)

    def take(self, char: str) -> bool:
        """Take the next character; return whether the object ends with it; raise NotACall where it cannot follow."""
        self._chars.append(char)
        if self._in_string:
            self._string(char)
            return False
        if self._start >= 0:
            if char in _SCALAR_CHARS:
                return False
            self._end_scalar()
        return False if char in _BLANKS else self._structure(char)

    def _string(self, char: str) -> None:
        if self._escape == -1:
            if char not in '"\\/bfnrtu':
                raise NotACall
            self._escape = 4 if char == "u" else 0
        elif self._escape:
            if char not in _HEX:
                raise NotACall
            self._escape -= 1
        elif char == "\\":
            self._escape = -1
        elif char == '"':
            self._end_string()

    def _end_string(self) -> None:
        is_key = self._expects in ("key", "key or end")
        if self._check is not None and len(self._open) == 1:
            text = "".join(self._chars[self._start + 1 : -1])
            if is_key:
                self._key = text
            self._check(self._key, None if is_key else text)
        self._in_string, self._start = False, -1
        self._expects = "colon" if is_key else "more"

    def _end_scalar(self) -> None:
        if not _SCALAR.fullmatch("".join(self._chars[self._start : -1])):
            raise NotACall
        self._start, self._expects = -1, "more"

    def _structure(self, char: str) -> bool:
        """Take a character outside of strings and scalars that is not blank."""
        expects = self._expects
        if char in "{[" and expects in ("value", "value or end", "object") and (char == "{" or expects != "object"):
            if len(self._open) == MAX_DEPTH:
                raise NotACall
            self._open.append(char)
            self._expects = "key or end" if char == "{" else "value or end"
        elif char in "}]" and expects in ("more", "key or end", "value or end") and char == _CLOSERS[self._open[-1]]:
            self._open.pop()
            self._expects = "more" if self._open else "nothing"
            return not self._open
        elif char == "," and expects == "more":
            self._expects = "key" if self._open[-1] == "{" else "value"
        elif char == ":" and expects == "colon":
            self._expects = "value"
        elif char == '"' and expects in ("key", "key or end", "value", "value or end"):
            self._start, self._in_string = len(self._chars) - 1, True
        elif char in _SCALAR_STARTS and expects in ("value", "value or end"):
            self._start = len(self._chars) - 1
        else:
            raise NotACall
        return False
