"""Know from the steps that were made how long the next one takes, by the number of its tokens."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

_WEIGHT = 0.2  # of the newest step in a mean
_MIN_PIECE = 4  # prompt tokens that join running answers wherever any do, so that every prompt goes on
_MOST_CREDIT_S = 0.1  # for prompts, saved up by steps without them: short ones come in at once


class Pace:
    """Mean seconds of a model's steps in classes of tokens 1, 2, 3-4, 5-8, ...; straight lines in between."""

    def __init__(self) -> None:
        self._means: dict[int, tuple[float, float]] = {}  # class -> mean tokens, mean seconds
        self._credit_s = _MOST_CREDIT_S
        self._allowed_s: float | None = None  # for the step that is observed next

    @contextmanager
    def timed(self, num_tokens: int) -> Iterator[None]:
        """Take in a step that runs inside."""
        began = time.perf_counter()
        yield
        self.observe(num_tokens, time.perf_counter() - began)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Take in a step; one that took far longer than others of its kind counts as twice their mean at most."""
        if self._allowed_s is not None:
            saved = self._credit_s + self._allowed_s - seconds
            self._credit_s = max(-_MOST_CREDIT_S, min(_MOST_CREDIT_S, saved))
            self._allowed_s = None
        kind = (num_tokens - 1).bit_length()
        known = self._means.get(kind)
        if known is None:
            self._means[kind] = (num_tokens, seconds)
            return
        tokens, mean = known
        seconds = min(seconds, 2 * mean)
        self._means[kind] = (tokens + _WEIGHT * (num_tokens - tokens), mean + _WEIGHT * (seconds - mean))

    def seconds(self, num_tokens: int) -> float | None:
        """Return how long a step of so many tokens takes, None where nothing is known.

        Beyond the largest step known it is taken to grow in proportion, below the smallest not to shrink.
        """
        points = [self._means[kind] for kind in sorted(self._means)]
        if not points:
            return None
        at = bisect_left([tokens for tokens, _ in points], num_tokens)
        if at == 0:
            return points[0][1]
        (low, fast), (high, slow) = points[at - 1], points[min(at, len(points) - 1)]
        if at == len(points):
            return slow * num_tokens / high
        return fast + (slow - fast) * (num_tokens - low) / (high - low)

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

    def price(self, num_decoding: int, num_drafts: int) -> float | None:
        """Return how likely a draft token must be accepted to pay for its time; None where that is not known.

        Tokens per second do not fall as long as a draft brings as many per second as the step does without it.
        """
        alone, together = self.seconds(num_decoding), self.seconds(num_decoding + num_drafts)
        if not num_drafts or alone is None or together is None:
            return None
        return max(0.0, together - alone) / num_drafts * num_decoding / alone
