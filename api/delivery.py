"""Bring the lines of an answer to its client: by its own thread, or past it by the one that brings the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from ollampi.api.engine_client import Done, Stream, Tokens
from ollampi.api.generation import Answer, Outcome, Piece, follow


class Pipe(Protocol):
    """A way to a client whose answer has begun."""

    def send_now(self, data: bytes) -> bool:
        """Send without waiting; return whether the client took all. What is left goes before anything else."""
        ...

    def flush(self) -> None:
        """Send what is left; raise OSError where the client is gone."""
        ...


class Delivery:
    """The lines of a streamed answer, for its own thread to send; `line` writes one.

    As soon as the first is sent, the thread that brings the tokens sends their lines itself, as long as the client
    takes them at once and the answer goes on. Without a pipe, as in tests, it does not.
    """

    def __init__(
        self,
        stream: Stream[Tokens | Done],
        answer: Answer,
        line: Callable[[Piece | Outcome], str],
        pipe: Pipe | None,
    ) -> None:
        self._stream = stream
        self._answer = answer
        self._line = line
        self._pipe = pipe

    def __iter__(self) -> Iterator[str]:
        """Yield the lines; raise EngineError where the engine gives up, OSError where the client is gone."""
        for piece in follow(self._stream, self._answer):
            yield self._line(piece)
            if self._pipe is not None:
                self._stream.divert(self._push, self._pipe.flush)

    def _push(self, event: Tokens | Done) -> bool:
        """Send what an event adds to the answer; return whether all of it is sent and the answer goes on."""
        assert isinstance(event, Tokens)
        assert self._pipe is not None
        piece = self._answer.feed(event)
        sent = piece is None or self._pipe.send_now(self._line(piece).encode())
        return sent and self._answer.end is None
