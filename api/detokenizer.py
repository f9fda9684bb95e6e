"""Turn a stream of token ids into text pieces: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from ollampi.api.text_tokenizer import TextTokenizer

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6  # more tokens than one character can be made of
_WINDOW_TOKENS = 24
_PATIENCE_TOKENS = 8


class Detokenizer(Protocol):
    """Turns tokens into text, one by one; the pieces joined are what decoding all tokens at once gives."""

    def feed(self, token: int) -> str:
        """Return the text that `token` completes."""
        ...

    def flush(self) -> str:
        """Return what still waits; the answer has ended."""
        ...


def detokenizer(tokenizer: TextTokenizer, before: list[int], shown: Iterable[str] = ()) -> Detokenizer:
    """Return the detokenizer of an answer that follows the tokens `before`.

    shown: the special tokens that stand in the text; the others are left out.
    """
    ids = {number: text for text in shown if (number := tokenizer.special_id(text)) is not None}
    if ids:
        return ShowingDetokenizer(lambda: detokenizer(tokenizer, before), ids)
    return WindowDetokenizer(tokenizer, before) if tokenizer.bytes_of is None else ByteDetokenizer(tokenizer.bytes_of)


class ByteDetokenizer:
    """Join the bytes of tokens, where these are all that counts; bytes that are no character become U+FFFD."""

    def __init__(self, bytes_of: Mapping[int, bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that `token` completes."""
        return self._decoder.decode(self._bytes_of[token])

    def flush(self) -> str:
        """Return what still waits; the answer has ended."""
        return self._decoder.decode(b"", final=True)


class ShowingDetokenizer:
    """Write some special tokens out; `texts` has these by id, `make` gives what detokenizes the others."""

    def __init__(self, make: Callable[[], Detokenizer], texts: Mapping[int, str]) -> None:
        self._make = make
        self._others = make()
        self._texts = texts

    def feed(self, token: int) -> str:
        """Return the text that `token` completes."""
        text = self._texts.get(token)
        if text is None:
            return self._others.feed(token)
        rest = self._others.flush()
        if rest:  # half a character, which nothing behind a token completes
            self._others = self._make()
        return rest + text

    def flush(self) -> str:
        """Return what still waits; the answer has ended."""
        return self._others.flush()


class WindowDetokenizer:
    """Decode tokens one by one in a sliding window; what may still be half a character waits.

    `before` are tokens that precede the answer: some tokenizers drop the blank of a token that begins a text.
    """

    def __init__(self, tokenizer: TextTokenizer, before: list[int]) -> None:
        self._tokenizer = tokenizer
        self._window = [t for t in before if t not in tokenizer.special_ids][-_CONTEXT_TOKENS:]
        self._sent = len(tokenizer.decode(self._window))
        self._held = 0

    def feed(self, token: int) -> str:
        """Return the text that `token` completes."""
        if token in self._tokenizer.special_ids:
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        ready = len(text.rstrip(_REPLACEMENT))
        self._held = 0 if ready == len(text) else self._held + 1
        if self._held > _PATIENCE_TOKENS:
            ready = len(text) - 1  # only the last character can still change
        piece = text[self._sent : ready]
        self._sent = max(self._sent, ready)
        self._slide(len(text) - self._sent)
        return piece

    def flush(self) -> str:
        """Return what still waits; the answer has ended."""
        piece = self._tokenizer.decode(self._window)[self._sent :]
        self._sent += len(piece)
        return piece

    def _slide(self, waiting: int) -> None:
        """Forget old tokens; `waiting` characters at the end were not given out yet."""
        if len(self._window) > _WINDOW_TOKENS and waiting <= 1:
            self._window = self._window[-_CONTEXT_TOKENS:]
            self._sent = len(self._tokenizer.decode(self._window)) - waiting


class _Matcher:
    """Look for one stop string in text that comes in pieces, at each character once (Knuth, Morris, Pratt)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0  # characters of the stop string at the end of the text so far
        self._borders = [0]  # the same for the stop string's own beginnings, which a mismatch falls back to
        for char in stop[1:]:
            self._borders.append(self._after(self._borders[-1], char))

    def feed(self, text: str) -> int | None:
        """Take the next piece; return where in it the stop string ends, or None where it does not."""
        for end, char in enumerate(text, 1):
            self.matched = self._after(self.matched, char)
            if self.matched == len(self.stop):
                return end
        return None

    def _after(self, matched: int, char: str) -> int:
        while matched and self.stop[matched] != char:
            matched = self._borders[matched - 1]
        return matched + (self.stop[matched] == char)


class StopFilter:
    """Pass text through up to the first stop string, wherever the pieces are cut; `found` is that string."""

    def __init__(self, stops: list[str]) -> None:
        self._matchers = [_Matcher(stop) for stop in stops]
        self._waiting = ""
        self.stopped = False
        self.found = ""

    def feed(self, text: str) -> str:
        """Return the text that is surely not part of a stop string; set `stopped` where one was found."""
        if self.stopped or not self._matchers:
            return "" if self.stopped else text
        ends = [(matcher, matcher.feed(text)) for matcher in self._matchers]
        starts = [(len(self._waiting) + end - len(m.stop), m.stop) for m, end in ends if end is not None]
        text = self._waiting + text
        self.stopped = bool(starts)
        ready, self.found = min(starts, default=(len(text) - max(m.matched for m in self._matchers), ""))
        self._waiting = "" if starts else text[ready:]
        return text[:ready]

    def flush(self) -> str:
        """Return what waited; the answer has ended."""
        text, self._waiting = self._waiting, ""
        return text
