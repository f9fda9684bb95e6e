"""Propose how a text goes on, so that one step can check several tokens.

What is accepted is what plain decoding would have chosen: a draft only saves steps. Leviathan et al., "Fast Inference
from Transformers via Speculative Decoding", 2023; drafts from the text itself: Saxena, "Prompt Lookup Decoding", 2023.
"""

from __future__ import annotations

import math

_LENGTHS = (8, 4, 2, 1)  # how many last tokens are looked for in the text before them, the longest first
_LONGEST_LOOK = 32768  # tokens that are remembered
_FEW = 32  # new tokens, up to which a loop is the fastest way to take them in
_PRIOR = 0.5  # chance of a draft token, in weight one observation
_FADE = 0.9  # of older observations at each new one
_FADE_UNUSED = 0.98


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

    def expected(self, length: int) -> float:
        """Return how many tokens of a draft are accepted on the average."""
        chance = self.chance
        return chance * (1 - chance**length) / (1 - chance)

    def fade(self) -> None:
        """Forget a little, so that drafts that did not pay are tried again."""
        self._accepted *= _FADE_UNUSED
        self._rejected *= _FADE_UNUSED

    def learn(self, proposed: int, accepted: int) -> None:
        """Take in what became of a draft."""
        self._accepted = self._accepted * _FADE + accepted
        self._rejected = self._rejected * _FADE + (accepted < proposed)


class Lookup:
    """Where runs of tokens of one text occurred last; drafts are what followed there.

    trust: in the drafts made last; those behind a long run are more often right than those behind a short one.
    """

    def __init__(self) -> None:
        self._after: dict[int, dict[tuple[int, ...], int]] = {length: {} for length in _LENGTHS}
        self._trusts = {length: Trust() for length in _LENGTHS}
        self._seen = 0
        self.trust = self._trusts[_LENGTHS[0]]

    def propose(self, tokens: list[int], most: int, price: float) -> list[int]:
        """Return at most `most` tokens that followed the text's last tokens before, each likely enough to pay.

        The text only grows from call to call. price: the least chance of being accepted that a draft token must have.
        """
        self._take_in(tokens)
        for length, after in self._after.items():
            at = after.get(tuple(tokens[-length:]))
            if at is not None:
                self.trust = self._trusts[length]
                return tokens[at : at + min(most, self.trust.length(price))]
        return []

    def _take_in(self, tokens: list[int]) -> None:
        """Note the runs that end before the tokens that are new."""
        begin = max(self._seen, len(tokens) - _LONGEST_LOOK)
        self._seen = len(tokens)
        few = len(tokens) - begin < _FEW
        for length, after in self._after.items():
            ends = range(max(begin, length), len(tokens))
            if few:
                for end in ends:
                    after[tuple(tokens[end - length : end])] = end
            else:
                new = tokens[max(0, begin - length) : -1]
                after.update(zip(zip(*(new[offset:] for offset in range(length)), strict=False), ends, strict=False))
