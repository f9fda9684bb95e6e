"""See where the reasoning of a model that thinks ends, in its tokens."""

from __future__ import annotations


class Reasoning:
    """What comes before the answer proper: perhaps the opening tag, then anything up to the closing tag.

    opening: the tokens of the tag that opens it; closing: the text that ends it; inside: the prompt opened it already.
    """

    def __init__(self, opening: list[int], closing: bytes, inside: bool) -> None:
        self._opening = opening
        self._closing = closing
        self._tail = b""
        self._opened = len(opening) if inside else 0
        self.over = False

    @property
    def inside(self) -> bool:
        """Return whether the model reasons now."""
        return not self.over and self._opened == len(self._opening)

    @property
    def forced(self) -> int | None:
        """Return the token of the opening tag that may come next, or must where it has begun."""
        return None if self.over or self.inside else self._opening[self._opened]

    @property
    def optional(self) -> bool:
        """Return whether the answer may also begin without any reasoning."""
        return self._opened == 0

    def take(self, token: int, fits: bool, text: bytes) -> bool:
        """Take the next token, with its text; return whether it belongs to the reasoning.

        fits: the grammar of the answer allows it too, which settles how the answer begins.
        """
        if self.inside:
            self._tail += text
            self.over = self._closing in self._tail
            self._tail = self._tail[1 - len(self._closing) :]
            return True
        if self.optional and (fits or token != self.forced):
            self.over = True
            return False
        self._opened += 1
        return True
