"""Split the text of an answer into calls of tools and the rest, piece by piece."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from ollampi.api.tools.calls import ToolCall
from ollampi.api.tools.definitions import Tool
from ollampi.api.tools.dialects import Dialect
from ollampi.api.tools.json_scan import NotACall
from ollampi.api.tools.readers import Reading

MAX_CALL_CHARS = 1 << 22  # of one call; more is text
_MOST_REREAD = 64
_BLANKS = re.compile(r"\s*")


class ToolSplitter:
    """Split an answer that may call `tools`; where its text is cut into pieces changes nothing.

    Blanks around calls are dropped, where nothing else is next to them; else all that is no call comes out as content.
    A call of a tool that the request does not have is none. special: tokens that must be shown in the text.
    """

    def __init__(self, dialect: Dialect, tools: Iterable[Tool]) -> None:
        self.special = dialect.special
        self._dialect = dialect
        self._tools = {tool.name: tool for tool in tools}
        self._openers, self._beginnings = _search(tuple(dialect.openers))
        self._reader: Reading[None] | None = None
        self._held: list[str] = []  # what the reader has taken since its last call
        self._settled = False  # it has given out calls
        self._again = ""  # the part of what was held that is not in the current piece
        self._waiting = ""  # a text that may become an opener
        self._blanks: list[str] = []  # since the beginning or the last call
        self._only_calls = True  # no content yet, so that an answer may still be a call as a whole
        self._only_blanks = True  # the same since the last call
        self._called = False
        self._content: list[str] = []
        self._calls: list[ToolCall] = []

    def feed(self, text: str) -> tuple[str, list[ToolCall]]:
        """Return (content, calls) that `text` adds."""
        text, self._waiting = self._waiting + text, ""
        place = 0
        while place < len(text):
            place = self._outside(text, place) if self._reader is None else self._inside(text, place)
            if place < 0:  # what an earlier piece ended with must be read again
                text, self._again, place = self._again + text, "", 0
        return self._taken()

    def flush(self) -> tuple[str, list[ToolCall]]:
        """Return (content, calls) that still waited; the answer has ended."""
        text, self._waiting = self._waiting, ""
        self._leave()
        self._pass(text)
        if not self._called:
            self._content += self._blanks
        self._blanks = []
        return self._taken()

    def _taken(self) -> tuple[str, list[ToolCall]]:
        content, calls = "".join(self._content), self._calls
        self._content, self._calls = [], []
        return content, calls

    def _outside(self, text: str, place: int) -> int:
        """Take text from `place` up to where a call may begin; return where to go on."""
        if self._only_calls:
            blanks = _BLANKS.match(text, place)
            first = blanks.end() if blanks else place
            if first < len(text) and text[first] in self._dialect.leading:
                self._pass(text[place:first])
                self._begin(self._dialect.leading[text[first]](self._tools), text[first])
                return first + 1
        if found := self._openers.search(text, place):
            self._pass(text[place : found.start()])
            self._begin(self._dialect.openers[found[0]](self._tools), found[0])
            return found.end()
        longest = min(len(text) - place, self._beginnings[1])
        kept = next((size for size in range(longest, 0, -1) if text[-size:] in self._beginnings[0]), 0)
        self._waiting = text[len(text) - kept :]
        self._pass(text[place : len(text) - kept])
        return len(text)

    def _inside(self, text: str, place: int) -> int:
        """Send text from `place` to the reader as long as it takes it; return where to go on."""
        assert self._reader is not None
        for here in range(place, len(text)):
            try:
                calls = self._reader.send(text[here])
            except StopIteration:
                self._held = []
                self._reader = None
                return here + 1
            except NotACall:
                return self._refused(here)
            self._held.append(text[here])
            if calls is not None:
                self._held = []
                self._called = self._settled = self._only_blanks = True
                self._blanks = []
                self._calls += calls
            if len(self._held) > MAX_CALL_CHARS:
                self._leave()
                return here + 1
        return len(text)

    def _refused(self, here: int) -> int:
        """Leave the reader, which does not take the character at `here`; return where to go on.

        What was held for the end of calls, or little behind an opener, may begin another call.
        """
        if not self._settled:
            if len(self._held) > _MOST_REREAD:  # else many openers could have the same text read many times
                self._leave()
                return here
            self._pass(self._held.pop(0))
        held, self._held, self._reader = self._held, [], None
        if len(held) > here:
            self._again = "".join(held[: len(held) - here])
        return here - len(held)

    def _begin(self, reader: Reading[None], opener: str) -> None:
        next(reader)
        self._reader, self._held, self._settled = reader, [opener], False

    def _leave(self) -> None:
        """Take what the reader holds for content."""
        text, self._held, self._reader = "".join(self._held), [], None
        self._pass(text)

    def _pass(self, text: str) -> None:
        """Take text for content; blanks wait until it is known what they stand next to."""
        if self._only_blanks and (not text or text.isspace()):
            self._blanks.append(text)
            return
        self._content += [*self._blanks, text]
        self._blanks = []
        self._only_blanks = self._only_calls = False


@lru_cache
def _search(openers: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[frozenset[str], int]]:
    """Return what finds the first opener in a text, and their beginnings with the length of the longest."""
    beginnings = frozenset(opener[:size] for opener in openers for size in range(1, len(opener)))
    pattern = "|".join(map(re.escape, openers)) or r"(?!)"
    return re.compile(pattern), (beginnings, max(map(len, beginnings), default=0))
