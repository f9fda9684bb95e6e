"""Hold a request that the engine works on, with the client that waits for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ollampi.mpiruntime.embedding import Inputs
from ollampi.mpiruntime.errors import OllampiError
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.inbox import Client
from ollampi.mpiruntime.metrics import RequestMeter
from ollampi.mpiruntime.request import TokenLogprob, Usage
from ollampi.mpiruntime.sequence import Sequence


@dataclass(eq=False)
class Active:
    """A request: `queued` are its sequences that the scheduler has; inputs is None unless embeddings are wanted.

    deadline: on the clock of time.monotonic.
    """

    queued: dict[Sequence, int]
    client: Client
    id: int
    model: HostedModel
    meter: RequestMeter
    deadline: float
    inputs: Inputs | None = None

    def post(self, kind: str, **values: object) -> None:
        """Send the client an event about this request."""
        self.client.post({"id": self.id, "kind": kind, **values})

    def collect(self, kind: str, **values: object) -> None:
        """Send the client an event about this request, together with the others of the step."""
        self.client.collect({"id": self.id, "kind": kind, **values})

    def usage(self) -> Usage:
        """Return what the request has cost so far."""
        return self.inputs.usage() if self.inputs else next(iter(self.queued)).usage()

    def take_tokens(self, tokens: list[int], logprobs: list[TokenLogprob], num_generated: int) -> None:
        """Count and tell the client the next tokens of its answer, num_generated with those before."""
        self.meter.advance(num_generated)
        if tokens:
            self.collect("tokens", tokens=tokens, logprobs=[asdict(entry) for entry in logprobs])

    def take_embedding(self, sequence: Sequence, values: bytes) -> list[Sequence]:
        """Tell the client the embedding (native float32) of an input; return the inputs that are queued instead."""
        if self.inputs is None:
            raise OllampiError("an embedding came for a request that asked for text")
        place, fed = self.inputs.finish(sequence)
        self.collect("embedding", place=place, values=values)
        return fed
