"""Keep the requests that the engine works on, and end them. Rank 0 only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

from ollampi.mpiruntime.active import Active
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.inbox import Client
from ollampi.mpiruntime.sequence import Sequence


class Running:
    """The requests that have begun and not ended, by client and number, and their sequences.

    refused: counts by code what ends before it could begin; forget is called for each sequence that goes, ended when a
    request has.
    """

    def __init__(
        self,
        refused: Counter[str],
        forget: Callable[[HostedModel, Sequence], None],
        ended: Callable[[], None],
    ) -> None:
        self._requests: dict[tuple[Client, int], Active] = {}
        self._owners: dict[Sequence, Active] = {}
        self._refused = refused
        self._forget = forget
        self._ended = ended

    def __len__(self) -> int:
        """Return how many requests there are."""
        return len(self._requests)

    def __iter__(self) -> Iterator[Active]:
        """Return all requests, of which the caller may end any."""
        return iter(list(self._requests.values()))

    def add(self, active: Active, queued: Iterable[Sequence]) -> None:
        """Take up a request, and the sequences of it that its scheduler has."""
        self._requests[active.client, active.id] = active
        self.queue(active, queued)

    def queue(self, active: Active, queued: Iterable[Sequence]) -> None:
        """Take up further sequences of a request."""
        self._owners.update(dict.fromkeys(queued, active))

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence that is done while its request goes on."""
        del self._owners[sequence]

    def get(self, client: Client, number: int) -> Active | None:
        """Return a client's request, None where it has ended."""
        return self._requests.get((client, number))

    def owner(self, sequence: Sequence) -> Active | None:
        """Return the request of a sequence, None where it has ended."""
        return self._owners.get(sequence)

    @property
    def sequences(self) -> list[tuple[Sequence, Active]]:
        """Return all sequences with their requests."""
        return list(self._owners.items())

    def complete(self, active: Active, reason: str) -> None:
        """End a request that needs nothing more."""
        self.end(active, reason)
        active.post("done", reason=reason, usage=asdict(active.usage()))

    def fail(self, active: Active, code: str, message: str, spoilt: bool = False) -> None:
        """End a request with an error, a refusal where it could not begin yet; spoilt as in Scheduler.remove."""
        taken = all(sequence.admissible for sequence in active.queued)
        self._refused[code] += not taken
        self.end(active, "error" if taken else None, spoilt)
        active.post("error", code=code, message=message)

    def fail_all(self, model: HostedModel, text: str) -> int:
        """End the requests of a replica, which may be made again; return how many there were."""
        found = [active for active in self if active.model is model]
        for active in found:
            self.fail(active, "unavailable", text, spoilt=True)
        return len(found)

    def end(self, active: Active, outcome: str | None, spoilt: bool = False) -> None:
        """Take a request out of everything that knows it; outcome as in RequestMeter.end, spoilt as in Scheduler."""
        active.meter.end(outcome)
        for sequence in active.queued:
            active.model.scheduler.remove(sequence, spoilt)
            self._forget(active.model, sequence)
            del self._owners[sequence]
        del self._requests[active.client, active.id]
        active.model.touch()
        self._ended()
