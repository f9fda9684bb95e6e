"""Read the arguments that models write as Python or in Gemma's own form rather than as JSON."""

from __future__ import annotations

import re
from typing import Any

from ollampi.api.tools.calls import clean, finite, whole
from ollampi.api.tools.json_scan import NotACall

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.S)
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_CLOSERS = {"{": "}", "[": "]", "(": ")"}


class Literals:
    """The values in a text whose brackets are known to match and are not nested deeply.

    marks: what strings stand between besides quotes; nothing is escaped there.
    """

    def __init__(self, text: str, marks: tuple[str, ...] = ()) -> None:
        raw = "".join(rf"|{re.escape(mark)}(?P<raw{n}>.*?){re.escape(mark)}" for n, mark in enumerate(marks))
        string = r"\"(?P<double>(?:[^\"\\]|\\.)*)\"|'(?P<single>(?:[^'\\]|\\.)*)'"
        scalar = r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![\w.])|(?P<word>[^\W\d][\w.-]*)"
        self._token = re.compile(rf"\s*(?:{string}{raw}|{scalar}|(?P<sign>[][(){{}},:=]))\s*", re.S)
        self._text = text
        self._place = 0
        self._kind, self._found = "", ""
        self._next()

    def arguments(self, equals: str, end: str) -> dict[str, Any]:
        """Return all values by name up to the bracket `end`, with which the text ends; raise NotACall."""
        found = self._pairs(equals, end)
        if self._kind:
            raise NotACall
        return found

    def _next(self) -> None:
        """Go on to the next token, of no kind at the end of the text."""
        self._kind, self._found = "", ""
        if self._place < len(self._text):
            token = self._token.match(self._text, self._place)
            if token is None or token.lastgroup is None:
                raise NotACall
            self._kind, self._found = token.lastgroup, token[token.lastgroup]
            self._place = token.end()

    def _sign(self, sign: str) -> bool:
        """Return whether the next token is this sign, and go on where it is."""
        if self._kind != "sign" or self._found != sign:
            return False
        self._next()
        return True

    def _pairs(self, equals: str, end: str) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while not self._sign(end):
            if self._kind in ("", "sign", "number"):
                raise NotACall
            key = self._found if self._kind == "word" else str(self._scalar())
            self._next()
            if not self._sign(equals):
                raise NotACall
            pairs[key] = self._value()
            if not self._sign(",") and (self._kind, self._found) != ("sign", end):
                raise NotACall
        return pairs

    def _value(self) -> Any:
        for opening, end in _CLOSERS.items():
            if self._sign(opening):
                return self._pairs(":", end) if opening == "{" else self._items(end)
        value = self._scalar()
        self._next()
        return value

    def _items(self, end: str) -> list[Any]:
        items = []
        while not self._sign(end):
            items.append(self._value())
            if not self._sign(",") and (self._kind, self._found) != ("sign", end):
                raise NotACall
        return items

    def _scalar(self) -> Any:
        """Return the value of the token here."""
        if self._kind in ("double", "single"):
            return clean(_ESCAPE.sub(_unescaped, self._found))
        if self._kind.startswith("raw"):
            return self._found
        if self._kind == "number":
            return whole(self._found) if self._found.lstrip("+-").isdecimal() else finite(self._found)
        if self._kind == "word" and self._found in _WORDS:
            return _WORDS[self._found]
        raise NotACall


def _unescaped(found: re.Match[str]) -> str:
    code = found[1] or found[2]
    return chr(int(code, 16)) if code else _ESCAPES.get(found[3], found[3])
