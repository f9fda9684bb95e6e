"""Know from the steps that were made how long the next one takes, by the number of its tokens."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

_WEIGHT = 0.2  # of the newest step in a mean
_MIN_PIECE = 4  # prompt tokens that join running answers wherever any do, so that every prompt goes on
_FADE = 0.97  # of what drafts cost each time that they would not pay
_MARGIN = 1.5  # how much more than their cost drafts must bring beside other answers, which only wait for them
_MOST_DRAFTED = 64  # steps with drafts in a row, before one without shows again what it takes
_MOST_CREDIT_S = 0.1  # for prompts, saved up by steps without them: short ones come in at once


class _Curve:
    """Mean seconds by a count, in classes 1, 2, 3-4, 5-8, ...; straight lines in between."""

    def __init__(self) -> None:
        self.means: dict[int, tuple[float, float]] = {}  # class -> mean count, mean seconds

    def observe(self, count: int, seconds: float) -> None:
        """Take in how long so many took."""
        kind = _kind(count)
        counts, mean = self.means.get(kind, (count, seconds))
        self.means[kind] = (counts + _WEIGHT * (count - counts), mean + _WEIGHT * (seconds - mean))

    def knows(self, count: int) -> bool:
        """Return whether counts of this class were observed."""
        return _kind(count) in self.means

    def at(self, count: int) -> float | None:
        """Return how long so many take, None where nothing is known.

        Beyond the largest count known it is taken to grow in proportion, below the smallest not to shrink.
        """
        points = [self.means[kind] for kind in sorted(self.means)]
        if not points:
            return None
        at = bisect_left([counts for counts, _ in points], count)
        if at == 0:
            return points[0][1]
        (low, fast), (high, slow) = points[at - 1], points[min(at, len(points) - 1)]
        if at == len(points):
            return slow * count / high
        return fast + (slow - fast) * (count - low) / (high - low)

    def fade(self) -> None:
        """Take everything for a little faster than it was."""
        self.means = {kind: (count, seconds * _FADE) for kind, (count, seconds) in self.means.items()}


class Pace:
    """How long a model's steps take by their tokens.

    What drafts add is known apart, by their number, for 1, 2, 3-4, ... answers: an answer with drafts attends alone, so
    they cost more than a prompt's tokens.
    """

    def __init__(self) -> None:
        self._plain = _Curve()
        self._added: dict[int, _Curve] = {}  # class of answers -> seconds that drafts add
        self._drafted: dict[int, int] = {}  # class of answers -> steps with drafts since the last without
        self._credit_s = _MOST_CREDIT_S
        self._allowed_s: float | None = None  # for the step that is observed next

    @contextmanager
    def timed(self, num_tokens: int, num_decoding: int = 0, num_drafts: int = 0) -> Iterator[None]:
        """Take in a step that runs inside."""
        began = time.perf_counter()
        yield
        self.observe(num_tokens, time.perf_counter() - began, num_decoding, num_drafts)

    def observe(self, num_tokens: int, seconds: float, num_decoding: int = 0, num_drafts: int = 0) -> None:
        """Take in a step of so many tokens, of which some are drafts of answers, one token of each besides.

        One that took far longer than others of its kind counts as twice their mean at most.
        """
        if self._allowed_s is not None:
            saved = self._credit_s + self._allowed_s - seconds
            self._credit_s = max(-_MOST_CREDIT_S, min(_MOST_CREDIT_S, saved))
            self._allowed_s = None
        if num_drafts:
            if num_tokens == num_decoding + num_drafts:
                self._observe_drafts(num_decoding, num_drafts, seconds)
            return
        kind = _kind(num_tokens)
        self._drafted[kind] = 0
        known = self._plain.means.get(kind)
        self._plain.observe(num_tokens, min(seconds, 2 * known[1]) if known else seconds)

    def _observe_drafts(self, num_decoding: int, num_drafts: int, seconds: float) -> None:
        """Take in a step of answers and drafts."""
        alone, expected = self.seconds(num_decoding), self.draft_seconds(num_decoding, num_drafts)
        if alone is None or expected is None:
            return
        kind = _kind(num_decoding)
        self._drafted[kind] = self._drafted.get(kind, 0) + 1
        added = max(0.0, min(seconds, 2 * (alone + expected)) - alone)
        curve = self._added.setdefault(kind, _Curve())
        if not curve.knows(num_drafts):
            curve.observe(num_drafts, expected)  # the first step of a kind is often slow, and says little
        curve.observe(num_drafts, added)

    def seconds(self, num_tokens: int) -> float | None:
        """Return how long a step of so many tokens takes, none of them drafts; None where nothing is known."""
        return self._plain.at(num_tokens)

    def prompt_room(self, num_decoding: int, max_stretch: float) -> int:
        """Return how many prompt tokens may join `num_decoding` tokens in the step that is observed next.

        On the average steps then take max_stretch times as long as without prompts; what some take less, others may
        take more.
        """
        alone = self.seconds(num_decoding)
        if alone is None:
            return _MIN_PIECE
        self._allowed_s = max_stretch * alone
        most = self._allowed_s + self._credit_s
        if most <= alone:
            return 0
        room = _MIN_PIECE
        while room < 1 << 20 and (self.seconds(num_decoding + 2 * room) or 0.0) <= most:
            room *= 2
        return room

    def draft_seconds(self, num_decoding: int, num_drafts: int) -> float | None:
        """Return how much longer a step of so many answers takes with drafts; None where that is not known."""
        curve = self._added.get(_kind(num_decoding))
        if curve is not None:
            return curve.at(num_drafts)
        alone, together = self.seconds(num_decoding), self.seconds(num_decoding + num_drafts)
        return None if alone is None or together is None else max(0.0, together - alone)

    def price(self, num_decoding: int, num_drafts: int) -> float | None:
        """Return how likely each of so many draft tokens must be accepted to pay for its time.

        None where that is not known: a step of so many answers must be made without drafts first, and now and then.
        Tokens per second do not fall as long as drafts bring as many per second as the step does without them.
        """
        if not num_drafts or self._drafted.get(_kind(num_decoding), _MOST_DRAFTED) >= _MOST_DRAFTED:
            return None
        alone, added = self.seconds(num_decoding), self.draft_seconds(num_decoding, num_drafts)
        if alone is None or added is None:
            return None
        margin = _MARGIN if num_decoding > 1 else 1.0
        return margin * added / num_drafts * num_decoding / alone

    def decline(self, num_decoding: int) -> None:
        """Take note that drafts would not pay; what they cost fades, so that they are tried again after a while."""
        if curve := self._added.get(_kind(num_decoding)):
            curve.fade()


def _kind(count: int) -> int:
    """Return the class of a count."""
    return (count - 1).bit_length()
