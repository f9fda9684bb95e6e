"""Tell which grammars the grammar process works on, also after its sudden death: memory that both sides share."""

from __future__ import annotations

import mmap
import os
import struct

FOLLOWED, OPENED = 0, 1  # what the process does at one time
_PLACES = struct.Struct("qq")
_PLACE = struct.Struct("q")
_NONE = -1


class Marks:
    """The numbers of the grammars that are being followed and opened; the grammar process writes, the other reads."""

    def __init__(self, file: int) -> None:
        self._memory = mmap.mmap(file, _PLACES.size)

    def mark(self, place: int, number: int | None) -> None:
        """Note which grammar is being followed or opened, None for none."""
        _PLACE.pack_into(self._memory, place * _PLACE.size, _NONE if number is None else number)

    def numbers(self) -> set[int]:
        """Return the grammars that are, or were when the process died, being worked on."""
        return set(_PLACES.unpack_from(self._memory)) - {_NONE}


def new_marks() -> tuple[int, Marks]:
    """Return a file without a name for the other process, which the caller closes, and its marks: none."""
    file = os.memfd_create("ollampi-grammars")
    os.write(file, _PLACES.pack(_NONE, _NONE))
    return file, Marks(file)
