"""Decide which models make room for another one: the least recently used first, and no more than must."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from ollampi.mpiruntime.errors import MemoryShortError
from ollampi.mpiruntime.request import ModelRef


class NotYet(Exception):
    """A model cannot be had before another one, or its own smaller self, is idle; `names` are the models concerned."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(f"{' and '.join(sorted(names))} must be idle first")
        self.names = names


class Evictable(Protocol):
    """What the order in which models go depends on: whether it works, how long it stays, when it was used last."""

    ref: ModelRef

    @property
    def idle(self) -> bool:
        """Return whether it has no work."""

    @property
    def keep_s(self) -> float:
        """Return how long it stays once idle, negative for ever."""

    @property
    def last_used(self) -> float:
        """Return when it was used last, by time.monotonic."""


T = TypeVar("T")
M = TypeVar("M", bound=Evictable)


def in_order(models: Iterable[M]) -> list[M]:
    """Return models in the order in which they go: idle ones first, of these those that need not stay for ever."""
    return sorted(models, key=lambda m: (not m.idle, m.keep_s < 0, m.last_used))


def await_idle(name: str, leaving: Iterable[Evictable]) -> None:
    """Raise NotYet where a model that must go for the model `name` has work."""
    if busy := {m.ref.name for m in leaving if not m.idle}:
        raise NotYet({name, *busy})


def make_room(check: Callable[[Sequence[M]], T], leaving: Sequence[M], others: Sequence[M]) -> tuple[T, list[M]]:
    """Return what a load gets, and which models must go for it.

    leaving: those that go in any case; as many of `others`, in their order, as it takes go too. check: returns what the
    load gets where some models go; raises MemoryShortError where that is not enough. Raise it where nothing is.
    """
    going, staying = list(leaving), list(others)
    while True:
        try:
            return check(going), going
        except MemoryShortError:
            if not staying:
                raise
            going.append(staying.pop(0))
