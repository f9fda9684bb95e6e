"""Say where the matrices of layers are while a model computes: all in memory, or some read again in every step.

Layers know nothing of it: the matrices of a layer that is streamed lie in a buffer that it shares with others, always
at the same address, and are there while it is that layer's turn. A single thread reads ahead into the other buffers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from ollampi.kernels import pages
from ollampi.kernels.linear import Matrix
from ollampi.mpiruntime.errors import LostWeights, ModelError, OllampiError
from ollampi.mpiruntime.layer_file import LayerFile, LayerWriter, open_layers
from ollampi.mpiruntime.layout import Layout, Place, Schedule, begins, run_bytes

T = TypeVar("T")


class Run:
    """The matrices of one layer in a buffer, in the order in which the layer is made."""

    def __init__(self, places: Sequence[Place], buffer: Tensor, is_filled: bool) -> None:
        self.is_filled = is_filled
        self._buffer = buffer
        self._left = list(zip(places, begins(places), strict=False))

    def matrix(self, name: str) -> Matrix:
        """Return the next matrix, in place: its numbers are to be written by the caller unless the run is filled."""
        place, begin = self._left.pop(0)
        assert place.name == name, (place.name, name)
        return place.within(self._buffer[begin:])


class Residence(Protocol):
    """Where the matrices of layers are.

    shared_bytes: how much less they take than all matrices of all layers do; step_bytes: what a step reads;
    most_passages: how many parts of a step may go through the layers a layer apart.
    """

    shared_bytes: int
    step_bytes: int
    most_passages: int

    def runs(self, count: int) -> Iterator[Run | None]:
        """Yield for each layer in turn where its matrices are to be made, None for anywhere; once, while loading."""

    def turns(self, layers: Sequence[T], passages: int = 1) -> list[Iterator[T]]:
        """Return for each part of a step an iterator that yields layers in turn, as soon as their matrices are there.

        These stay until every part has asked for a layer behind it; parts take turns at each layer. Once in every step,
        in one thread. The iterators raise LostWeights where matrices cannot be had any more.
        """

    def stays(self, layer: int) -> bool:
        """Return whether the matrices of a layer are in memory all the time."""

    def close(self) -> None:
        """Free what it holds beside the matrices."""


class InMemory:
    """All matrices stay where they were made."""

    shared_bytes = 0
    step_bytes = 0
    most_passages = 1 << 30

    def runs(self, count: int) -> Iterator[Run | None]:
        """Yield None for each layer."""
        return iter([None] * count)

    def turns(self, layers: Sequence[T], passages: int = 1) -> list[Iterator[T]]:
        """Return iterators over the layers."""
        return [iter(layers) for _ in range(passages)]

    def stays(self, layer: int) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing."""


class Streamed:
    """The layers of a schedule are read from a file in every step, as many ahead as there are buffers less one.

    path: of the file, which is written with the first load; key: returns what it is known by now. Threads: `turns` runs
    in the one that computes; the one that reads touches a buffer only between the turns of the layers that share it.
    bytes_read, waited_s: what was read and for how long the computing thread waited, since the start.
    """

    def __init__(self, planned: Schedule, layout: Layout, path: Path, key: Callable[[], str]) -> None:
        self.planned, self.layout = planned, layout
        self.bytes_read, self.waited_s = 0, 0.0
        self._path, self._key_now, self._key = path, key, key()
        self._sizes = [run_bytes(run) for run in layout]
        self._place_of = {layer: place for place, layer in enumerate(planned.layers)}
        self._writer: LayerWriter | None = None
        self._buffers = [pages.aligned(planned.buffer_bytes(self._sizes)) for _ in range(planned.num_buffers)]
        self._coming: list[tuple[int, Future[None] | None]] = [(-1, None)] * planned.num_buffers
        self._reader = ThreadPoolExecutor(1, "layers")
        self._file: LayerFile | None = open_layers(path, self._key, self._sizes)
        matrices = sum(place.size_bytes for run in layout for place in run)
        self.shared_bytes = matrices - planned.held_bytes(self._sizes)
        self.step_bytes = planned.step_bytes(self._sizes)
        self.most_passages = min(2, planned.num_buffers)  # of which one may be a layer ahead

    def runs(self, count: int) -> Iterator[Run | None]:
        """Yield for each layer where its matrices are to be made, filled where there is the file; else write it.

        Raise Damaged, ModelError or OSError.
        """
        writer = self._writer = LayerWriter(self._path, self._key, self._sizes) if self._file is None else None
        for layer in range(count):
            buffer = self._buffer(layer)
            if writer is None:
                self._read(layer, buffer)
            yield Run(self.layout[layer], buffer, writer is None)
            if writer is not None:
                writer.write(layer, buffer)
        if writer is not None:
            if self._key_now() != self._key:
                raise ModelError("the checkpoint changed while it was read; load it again")
            writer.seal()
            writer.close()
            self._file = open_layers(self._path, self._key, self._sizes)
        for place in range(self.planned.num_buffers):
            self._fill(place)

    def turns(self, layers: Sequence[T], passages: int = 1) -> list[Iterator[T]]:
        """Return iterators over the layers, which wait for those that are streamed; raise ValueError for too many."""
        if passages > self.most_passages:
            raise ValueError(f"{passages} parts of a step cannot share {self.planned.num_buffers} buffer")
        inside = [passages] * len(self.planned.layers)
        return [self._passage(layers, inside) for _ in range(passages)]

    def _passage(self, layers: Sequence[T], inside: list[int]) -> Iterator[T]:
        """Yield layers in turn; inside: by place how many parts of the step have yet to leave it."""
        for number, layer in enumerate(layers):
            place = self._place_of.get(number)
            if place is None:
                yield layer
                continue
            self._wait(place)
            yield layer
            inside[place] -= 1
            if not inside[place] and not self.planned.stays(place):
                self._fill(self.planned.next(place))

    def stays(self, layer: int) -> bool:
        """Return whether a layer is not read again in every step."""
        return layer not in self._place_of

    def close(self) -> None:
        """End the thread once it has read what it is reading, and close the file; remove one that is half written."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._writer is not None:
            self._writer.close()

    def _buffer(self, layer: int) -> Tensor:
        """Return where the run of a layer is to be: in a shared buffer, or in memory of its own."""
        place = self._place_of.get(layer)
        if place is None:
            return pages.aligned(self._sizes[layer])
        return self._buffers[place % self.planned.num_buffers][: self._sizes[layer]]

    def _fill(self, place: int) -> None:
        """Let the layer of a place be read into its buffer, behind what is to be read before."""
        layer = self.planned.layers[place]
        coming = self._reader.submit(self._read, layer, self._buffer(layer))
        self._coming[place % self.planned.num_buffers] = place, coming

    def _read(self, layer: int, buffer: Tensor) -> None:
        """Read the run of a layer; raise Damaged, or OSError."""
        assert self._file is not None
        self._file.read(layer, buffer)
        self.bytes_read += len(buffer)

    def _wait(self, place: int) -> None:
        """Wait until the layer of a place is in its buffer; raise LostWeights where it cannot be read."""
        number = place % self.planned.num_buffers
        if self._coming[number][0] != place:  # the last step ended before its end
            self._fill(place)
        coming, began = self._coming[number][1], time.perf_counter()
        assert coming is not None
        try:
            coming.result()
        except (OllampiError, OSError) as e:
            layer = self.planned.layers[place]
            raise LostWeights(
                f"layer {layer} cannot be read any more from {self._path}: {e}; start again, which writes the file anew"
                " where it is damaged"
            ) from e
        self.waited_s += time.perf_counter() - began


@contextmanager
def closed_on_error(residence: Residence) -> Iterator[None]:
    """Close a residence where the block raises."""
    try:
        yield
    except BaseException:
        residence.close()
        raise
