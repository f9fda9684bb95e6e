"""Cut the source of a template of Go into its text and the tokens of its actions, in linear time.

What counts as a token, and what {{- and -}} trim, is written in the documentation of Go's package text/template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ollampi.api.errors import shown
from ollampi.api.gotemplates.failure import failure

MAX_NAME_CHARS = 200
_BLANKS = " \t\r\n"  # what Go trims
_LEFT_MARKS = tuple("-" + blank for blank in _BLANKS)
_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n]+)
    |(?P<field>\.[^\W\d]\w*)
    |(?P<variable>\$\w*)
    |(?P<name>[^\W\d]\w*)
    |(?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.]))
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<raw>`[^`]*`)
    |(?P<mark>:=|[=|,().])""",
    re.VERBOSE,
)
_AFTER_COMMENT = re.compile(rf"[{_BLANKS}]*(?<=[{_BLANKS}])-\}}\}}|[{_BLANKS}]*\}}\}}")
_ESCAPE = re.compile(r"\\(?:([abfnrtv\\\"'])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.|\n))")
_ESCAPED = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34, "'": 39}


@dataclass(frozen=True, slots=True)
class Token:
    """A part of an action.

    kind: "blank", "field", "variable", "name", "number", "string" (its text is what it stands for), or "mark".
    """

    kind: str
    text: str


def pieces(source: str) -> Iterator[str | list[Token]]:
    """Yield text as str and each action as its tokens, in order; comments are left out.

    Raise ApiError where an action is not closed or holds what is no token.
    """
    end, trim = 0, False
    while (start := source.find("{{", end)) >= 0:
        trims_left = source.startswith(_LEFT_MARKS, start + 2)
        yield _trimmed(source[end:start], trim, trims_left)
        inside = start + (4 if trims_left else 2)
        if comment := _comment_end(source, inside):
            end, trim = comment
            continue
        tokens, end, trim = _action(source, inside)
        yield tokens
    yield _trimmed(source[end:], trim, False)


def _trimmed(text: str, left: bool, right: bool) -> str:
    text = text.lstrip(_BLANKS) if left else text
    return text.rstrip(_BLANKS) if right else text


def _comment_end(source: str, position: int) -> tuple[int, bool] | None:
    """Return where the comment at `position` ends, and whether it trims; None where none begins there."""
    while source[position : position + 1] in _LEFT_BLANKS:
        position += 1
    if not source.startswith("/*", position):
        return None
    inside = source.find("*/", position + 2)
    close = _AFTER_COMMENT.match(source, inside + 2) if inside >= 0 else None
    if close is None:
        raise failure("unclosed comment; write {{/* ... */}}")
    return close.end(), "-" in close[0]


_LEFT_BLANKS = frozenset(_BLANKS)


def _action(source: str, position: int) -> tuple[list[Token], int, bool]:
    """Return the tokens of the action whose inside begins at `position`, where it ends, and whether it trims there."""
    tokens: list[Token] = []
    while position < len(source):
        if source.startswith("}}", position):
            return tokens, position + 2, False
        if tokens and tokens[-1].kind == "blank" and source.startswith("-}}", position):
            return tokens, position + 3, True
        found = _TOKEN.match(source, position)
        if found is None:
            rest = source[position : position + 30]
            raise failure(f'unexpected "{rest}" in an action' if rest[0] not in '"`' else "unterminated string")
        tokens.append(_token(str(found.lastgroup), found[0]))
        position = found.end()
    raise failure("unclosed action")


def _token(kind: str, text: str) -> Token:
    if kind == "string":
        return Token("string", _unescaped(text[1:-1]))
    if kind == "raw":
        return Token("string", text[1:-1].replace("\r", ""))
    if kind != "blank" and len(text) > MAX_NAME_CHARS:
        raise failure(f"the name {shown(text, 40)} has {len(text)} characters; the limit is {MAX_NAME_CHARS}")
    return Token(kind, text)


def _unescaped(text: str) -> str:
    """Return what stands between double quotes with its escapes replaced."""
    found: list[bytes] = []
    end = 0
    for escape in _ESCAPE.finditer(text):
        letter, byte, short, long, octal, wrong = escape.groups()
        code = int(byte or short or long or "0", 16) if letter is None else _ESCAPED[letter]
        code = int(octal, 8) if octal else code
        if wrong or code > (0xFF if octal else 0x10FFFF) or 0xD800 <= code < 0xE000:
            raise failure(f"unknown escape {escape[0]} in a string")
        found += [text[end : escape.start()].encode(), bytes([code]) if byte or octal else chr(code).encode()]
        end = escape.end()
    return b"".join([*found, text[end:].encode()]).decode(errors="replace") if found else text
