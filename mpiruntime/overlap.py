"""Decide which steps are computed in halves, by how long either way took."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ollampi.mpiruntime.world import RankFacts

_FEWEST = 64  # tokens: a half reads all weights anew, which few tokens do not pay for
_KEPT = 4  # of the latest times of either way; the best of them counts, which no pause of a busy machine touches
_AGAIN = 32  # every so many steps of a size the other way is taken once, so that both stay known

Times = tuple[deque[float], deque[float]]  # of whole steps, and of those in halves: seconds for each token


class Halving:
    """Which steps of one model are computed in two halves, one of which is exchanged meanwhile. Rank 0 decides.

    wanted: as ExchangeSettings.overlap. Where that is auto, and the ranks are on several hosts, long steps are tried
    both ways, and go the way that took less for each token; sizes of 65 to 128 tokens, 129 to 256 and so on apart.
    """

    def __init__(self, wanted: str, facts: Sequence[RankFacts]) -> None:
        hosts = len({fact.host for fact in facts})
        self._always = wanted == "always" and len(facts) > 1
        self._tries = wanted == "auto" and hosts > 1
        self._times: dict[int, Times] = {}
        self._steps: dict[int, int] = {}

    def cuts(self, num_tokens: int) -> bool:
        """Return whether the next step, of so many tokens, is computed in halves."""
        if not self._tries or num_tokens < _FEWEST:
            return self._always and num_tokens > 1
        kind = num_tokens.bit_length()
        count = self._steps[kind] = self._steps.get(kind, 0) + 1
        whole, halved = self._times.setdefault(kind, (deque(maxlen=_KEPT), deque(maxlen=_KEPT)))
        if len(halved) < _KEPT:  # in turns, whole ones first
            return len(whole) > len(halved)
        return (min(halved) < min(whole)) != (count % _AGAIN == 0)

    def observe(self, num_tokens: int, halved: bool, seconds: float) -> None:
        """Take in how long a step took."""
        if self._tries and num_tokens >= _FEWEST and num_tokens.bit_length() in self._times:
            self._times[num_tokens.bit_length()][halved].append(seconds / num_tokens)
