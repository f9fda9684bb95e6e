"""Follow several answers, to one prompt or to more, which the engine makes at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flask import Response

from ollampi.api.generation import Outcome, Piece, follow
from ollampi.api.run import Run
from ollampi.api.stream import Form, growing_answer


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Several:
    """Answers that are read and closed together; unwatch ends the watch over their client."""

    runs: tuple[Run, ...]
    unwatch: Callable[[], None] = _nothing

    def cancel(self) -> None:
        """Tell the engine to stop all of them; safe from any thread."""
        for run in self.runs:
            run.stream.cancel()

    def close(self) -> None:
        """End all of them, whatever state they are in."""
        self.unwatch()
        for run in self.runs:
            run.close()

    def whole(self) -> list[Outcome]:
        """Return their ends with all of their texts, in their order; raise EngineError."""
        try:
            return [run.whole() for run in self.runs]
        finally:
            self.close()

    def growing(self, line: Callable[[Piece | Outcome, int], str], form: Form) -> Response:
        """Return them as they grow, each piece written by `line` with its answer's place; raise as Run.growing."""
        return growing_answer(self._lines(line), form, self.close)

    def _lines(self, line: Callable[[Piece | Outcome, int], str]) -> Iterator[str]:
        """Yield the lines of all in turns: their steps are the same, so none waits long for another."""
        going = {place: follow(run.stream, run.answer) for place, run in enumerate(self.runs)}
        while going:
            for place, pieces in list(going.items()):
                piece = next(pieces)
                yield line(piece, place)
                if isinstance(piece, Outcome):
                    del going[place]
