"""Say how far a pull, a push or a create is: a bar for each layer on a terminal, elsewhere plain lines."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from ollampi.launcher.client import Json
from ollampi.launcher.rate import Rate
from ollampi.launcher.words import human_size, one_line

_EVERY_S = 0.1  # between two pictures
_BAR = 40
_SHORTEST_BAR = 4
_LONG_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


class _Layer:
    """One line: a status, and how many of how many bytes are done where it has any."""

    def __init__(self, status: str, clock: Callable[[], float]) -> None:
        self.status, self.completed, self.total = status, 0, 0
        self.rate = Rate(clock)

    def note(self, completed: int, total: int) -> None:
        self.completed, self.total = min(completed, total), total
        self.rate.note(self.completed)

    @property
    def percent(self) -> int:
        return 100 * self.completed // self.total if self.total else 100

    def plain(self) -> str:
        speed = ", ".join(filter(None, [self._speed(), self._left(" left")]))
        return f"{self.status}: {self.percent} % of {human_size(self.total)}{f' ({speed})' if speed else ''}"

    def drawn(self, columns: int) -> str:
        """Return the line with its bar, at most so many columns wide."""
        status = _LONG_DIGEST.sub(r"\1", self.status)
        if not self.total:
            return status[:columns]
        sizes = human_size(self.total)
        if self.completed < self.total:
            sizes = f"{human_size(self.completed)}/{sizes}"
        facts = "  ".join(filter(None, [sizes, self._speed(), self._left("")]))
        room = columns - len(f" {self.percent:3}% [] {facts}") - _SHORTEST_BAR - 1
        start = f"{status[: max(0, room)]}: {self.percent:3}% "
        width = min(_BAR, columns - len(start) - len(facts) - 3)
        if width < _SHORTEST_BAR:
            return f"{start}{facts}"[:columns]
        done = width * self.completed // self.total
        return f"{start}[{'#' * done:.<{width}}] {facts}"

    def _speed(self) -> str:
        return f"{human_size(int(self.rate.per_s))}/s" if self.rate.per_s else ""

    def _left(self, word: str) -> str:
        left = self.rate.left(self.total - self.completed)
        return f"{left}{word}" if left else ""


class Bars:
    """Write the progress objects of the server with `write`.

    moving: whether lines take the place of those before, for which nobody else may write until `close`;
    size: returns the columns and lines of the terminal.
    """

    def __init__(
        self,
        write: Callable[[str], Any],
        moving: bool,
        size: Callable[[], tuple[int, int]] = lambda: (80, 24),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._moving, self._size, self._clock = write, moving, size, clock
        self._layers: dict[str, _Layer] = {}
        self._tenths: dict[str, int] = {}
        self._drawn, self._due, self._status = 0, 0.0, ""

    def __call__(self, piece: Json) -> None:
        """Take one progress object: a status, and for a layer its digest, its bytes and those that are done."""
        status, digest = one_line(str(piece.get("status") or "")), piece.get("digest")
        total, completed = _count(piece.get("total")), _count(piece.get("completed"))
        if digest and total:
            key, self._status = f"{status} {digest}", ""
        elif status and status != self._status:
            key, self._status = f"{len(self._layers)}", status
        else:
            return
        layer = self._layers.setdefault(key, _Layer(status, self._clock))
        layer.note(completed, total)
        if self._moving:
            self._draw()
        else:
            self._line(key, layer)

    def follow(self, pieces: Iterable[Json]) -> None:
        """Take all progress objects, whatever ends them."""
        try:
            for piece in pieces:
                self(piece)
        finally:
            self.close()

    def close(self) -> None:
        """Leave the last picture, with every line of it."""
        if self._moving and self._layers:
            self._picture([layer.drawn(self._size()[0] - 1) for layer in self._layers.values()])
        self._layers.clear()
        self._tenths.clear()
        self._drawn, self._due, self._status = 0, 0.0, ""

    def _line(self, key: str, layer: _Layer) -> None:
        """Write a plain line for a new status, and for every tenth of a layer."""
        if not layer.total:
            self._write(f"{layer.status}\n")
        elif layer.percent // 10 > self._tenths.get(key, -1):
            self._tenths[key] = layer.percent // 10
            self._write(f"{layer.plain()}\n")

    def _draw(self) -> None:
        if self._clock() >= self._due:
            self._due = self._clock() + _EVERY_S
            columns, lines = self._size()
            self._picture([layer.drawn(columns - 1) for layer in list(self._layers.values())[1 - lines :]])

    def _picture(self, lines: list[str]) -> None:
        """Write lines over those of the picture before; the cursor stays below the last."""
        up = f"\x1b[{self._drawn}A\r\x1b[J" if self._drawn else ""
        self._write(up + "".join(f"{line}\n" for line in lines))
        self._drawn = len(lines)


def _count(value: object) -> int:
    return max(0, value) if isinstance(value, int) else 0
