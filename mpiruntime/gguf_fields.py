"""Take the values of a GGUF header one by one, each length checked against the bytes that are left.

The encoding: little endian; a string is its length in 8 bytes and UTF-8; an array is the type of its items in 4 bytes,
their number in 8 and the items. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from ollampi.mpiruntime.errors import CheckpointError

Value = int | float | bool | str | list["Value"]

MAX_HEADER_BYTES = 64 << 20  # beyond the largest vocabularies by a factor of five
MAX_ITEMS = 1 << 21  # of all arrays together
MAX_KEY_BYTES = (1 << 16) - 1
_MAX_DEPTH = 4  # of arrays in arrays, which no known key has
_MAX_ARRAYS = 1 << 16  # in an array
_PIECE_BYTES = 1 << 20

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SIZES = {kind: struct.calcsize(f"<{letter}") for kind, letter in _NUMBERS.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_LEAST_BYTES = {**_SIZES, _STRING: 8, _ARRAY: 12}


class HeaderFields:
    """The beginning of an open file, from which values are taken in turn.

    place: what is being read, for errors. Nothing beyond what was asked for, rounded up to a MiB, is read or held.
    """

    def __init__(self, path: Path, file: BinaryIO, file_bytes: int) -> None:
        self.path = path
        self.at = 0
        self.place = "the header"
        self._file = file
        self._file_bytes = file_bytes
        self._held = bytearray()
        self._items = 0

    def wrong(self, what: str) -> CheckpointError:
        """Return the error that says what is wrong at this place."""
        return CheckpointError(f"{self.path}: {self.place} {what}; the file is damaged, fetch it again")

    def u32(self) -> int:
        """Return the next 4 bytes as a number."""
        return int(_U32.unpack_from(self._held, self._pass(4))[0])

    def u64(self) -> int:
        """Return the next 8 bytes as a number."""
        return int(_U64.unpack_from(self._held, self._pass(8))[0])

    def count(self, least_bytes: int, most: int) -> int:
        """Return how many things of at least so many bytes follow; raise CheckpointError where they cannot."""
        count = self.u64()
        if count > most or count * least_bytes > self._file_bytes - self.at:
            raise self.wrong(
                f"claims {count} items of at least {least_bytes} bytes,"
                f" {self._file_bytes - self.at} bytes are left (limit {most} items)"
            )
        return count

    def text(self, most_bytes: int = MAX_HEADER_BYTES) -> str:
        """Return a string."""
        size = self.u64()
        if size > most_bytes:
            raise self.wrong(f"claims a string of {size} bytes (limit {most_bytes})")
        begin = self._pass(size)
        return self._decoded(begin, begin + size)

    def since(self, begin: int) -> bytes:
        """Return the bytes from `begin` on that have been passed."""
        return bytes(self._held[begin : self.at])

    def value(self, kind: int, depth: int = 0) -> Value:
        """Return a value of the type that has the number `kind`."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(depth)
        return self._numbers(kind, 1)[0]

    def skip(self, kind: int) -> None:
        """Pass a value; arrays of strings and numbers without making objects of them."""
        if kind != _ARRAY:
            self.value(kind)
            return
        inner, count = self._array_head()
        if inner == _STRING:
            self._skip_strings(count)
        elif inner == _ARRAY:
            for _ in range(count):
                self._array(1)
        else:
            self._pass(count * _SIZES[inner])

    def _array_head(self) -> tuple[int, int]:
        """Return the type and the number of an array's items."""
        kind = self.u32()
        if kind not in _LEAST_BYTES:
            raise self.wrong(f"is an array of the unknown type {kind}")
        count = self.count(_LEAST_BYTES[kind], _MAX_ARRAYS if kind == _ARRAY else MAX_ITEMS)
        self._items += count
        if self._items > MAX_ITEMS:
            raise self.wrong(f"brings the items of all arrays to {self._items} (limit {MAX_ITEMS})")
        return kind, count

    def _array(self, depth: int) -> list[Value]:
        """Return an array's items."""
        if depth == _MAX_DEPTH:
            raise self.wrong(f"has arrays in arrays beyond {_MAX_DEPTH} levels")
        kind, count = self._array_head()
        if kind == _STRING:
            return self._strings(count)
        if kind == _ARRAY:
            return [self._array(depth + 1) for _ in range(count)]
        return self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> list[Value]:
        """Return `count` numbers or booleans."""
        if kind not in _NUMBERS:
            raise self.wrong(f"has the unknown type {kind}")
        begin = self._pass(count * _SIZES[kind])
        if kind == _BOOL and count and max(self._held[begin : begin + count]) > 1:
            raise self.wrong("has a boolean that is neither 0 nor 1")
        return list(struct.unpack_from(f"<{count}{_NUMBERS[kind]}", self._held, begin))

    def _strings(self, count: int) -> list[Value]:
        """Return `count` strings; written out for its speed, since vocabularies have hundreds of thousands."""
        strings: list[Value] = []
        add, size_at, held, at = strings.append, _U64.unpack_from, self._held, self.at
        for _ in range(count):
            begin = at + 8
            if begin > len(held):
                self._fill(begin)
            at = begin + size_at(held, at)[0]
            if at > len(held):
                self._fill(at)
            try:
                add(held[begin:at].decode())
            except UnicodeDecodeError:
                self._decoded(begin, at)
        self.at = at
        return strings

    def _skip_strings(self, count: int) -> None:
        """Pass `count` strings."""
        size_at, held, at = _U64.unpack_from, self._held, self.at
        for _ in range(count):
            if at + 8 > len(held):
                self._fill(at + 8)
            at += 8 + size_at(held, at)[0]
            if at > len(held):
                self._fill(at)
        self.at = at

    def _decoded(self, begin: int, end: int) -> str:
        try:
            return self._held[begin:end].decode()
        except UnicodeDecodeError as e:
            raise self.wrong(f"has a string that is not UTF-8 ({e.reason} at byte {begin + e.start})") from e

    def _pass(self, count: int) -> int:
        """Return where the next `count` bytes begin, and go behind them."""
        begin = self.at
        self.at += count
        if self.at > len(self._held):
            self._fill(self.at)
        return begin

    def _fill(self, end: int) -> None:
        """Read on until `end` bytes are held; raise CheckpointError where the file has fewer."""
        if end > self._file_bytes:
            raise self.wrong(f"needs {end} bytes, the file has {self._file_bytes}")
        if end > MAX_HEADER_BYTES:
            raise self.wrong(f"brings the header to {end} bytes (limit {MAX_HEADER_BYTES})")
        while len(self._held) < end:
            wanted = max(_PIECE_BYTES, end - len(self._held))
            piece = self._file.read(min(wanted, self._file_bytes - len(self._held)))
            if not piece:
                raise self.wrong(f"ends after {len(self._held)} bytes, the file had {self._file_bytes}")
            self._held += piece
