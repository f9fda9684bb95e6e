"""Propose how a text goes on, so that one step can check several tokens.

What is accepted is what plain decoding would have chosen: a draft only saves steps. Leviathan et al., "Fast Inference
from Transformers via Speculative Decoding", 2023; drafts from the text itself: Saxena, "Prompt Lookup Decoding", 2023.
"""

from __future__ import annotations

import math

_LENGTH = 3  # tokens that must be equal before their continuation is proposed
_LONGEST_LOOK = 32768  # tokens that are remembered
_PRIOR = 0.5  # chance of a draft token, in weight one observation
_FADE = 0.9  # of older observations at each new one
_FADE_UNUSED = 0.98


class Lookup:
    """Where runs of _LENGTH tokens of one text occurred last; drafts are what followed there."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._seen = 0

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """Return at most `most` tokens that followed the text's last tokens before; the text only grows."""
        begin = max(self._seen, len(tokens) - _LONGEST_LOOK)
        for end in range(max(begin, _LENGTH), len(tokens)):
            self._after[tuple(tokens[end - _LENGTH : end])] = end
        self._seen = len(tokens)
        at = self._after.get(tuple(tokens[-_LENGTH:]))
        return [] if at is None else tokens[at : at + most]


class Trust:
    """How likely the next token of a sequence's drafts is accepted, from those before."""

    def __init__(self) -> None:
        self._accepted = 0.0
        self._rejected = 0.0

    @property
    def chance(self) -> float:
        """Return the chance of one token, given those before it."""
        return (self._accepted + _PRIOR) / (self._accepted + self._rejected + 1)

    def length(self, threshold: float) -> int:
        """Return how many tokens of a draft are each reached and accepted with at least this chance."""
        if threshold >= self.chance:
            self.fade()
            return 0
        return int(math.log(max(threshold, 1e-9)) / math.log(self.chance))

    def fade(self) -> None:
        """Forget a little, so that drafts that did not pay are tried again."""
        self._accepted *= _FADE_UNUSED
        self._rejected *= _FADE_UNUSED

    def learn(self, proposed: int, accepted: int) -> None:
        """Take in what became of a draft."""
        self._accepted = self._accepted * _FADE + accepted
        self._rejected = self._rejected * _FADE + (accepted < proposed)
