"""A stand-in for cupy's NCCL and for tensors of GPUs: threads of one process exchange memory of the CPU."""

from __future__ import annotations

import ctypes
import random
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ollampi.mpiruntime import staged
from support.fake_cupy import FakeStream


class OnGpu(Tensor):
    """A tensor that says that it lies on the current GPU."""

    is_cuda = True  # type: ignore[assignment]
    device = property(lambda self: torch.device("cuda", 0))  # type: ignore[assignment]


def on_gpu(x: Tensor) -> Tensor:
    """Return a copy of x [...] that says so."""
    return x.clone().as_subclass(OnGpu)


def on_cpu(x: Tensor) -> Tensor:
    """Return x [...] after asserting that it says that it is on a GPU."""
    assert isinstance(x, OnGpu)
    return x.as_subclass(Tensor)


class _World:
    """The place where the threads of one NCCL world meet."""

    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)
        self.mail: dict[tuple[int, int], tuple[int, int]] = {}
        self.posted = threading.Condition()

    def meet(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait(10)
        slots = list(self.slots)
        self.barrier.wait(10)
        return slots


class FakeNccl:
    """What mpiruntime/nccl.py takes of cupy.cuda.nccl."""

    NCCL_UINT8, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 1, 7, 8, 0
    _TYPES = {7: np.float32, 8: np.float64}  # noqa: RUF012

    def __init__(self) -> None:
        self.available = True
        self.worlds: dict[tuple[int, ...], _World] = {}
        self.streams: set[int] = set()
        self.calls: list[str] = []
        self.groups = 0
        self._lock = threading.Lock()
        self._own = threading.local()

    def get_unique_id(self) -> tuple[int, ...]:
        """Return numbers as NCCL's: of the type char, which has a sign."""
        return tuple(random.randrange(-128, 128) for _ in range(128))

    def groupStart(self) -> None:
        self._own.group = []

    def groupEnd(self) -> None:
        for receive in self._own.group:
            receive()
        self.groups += 1

    def NcclCommunicator(self, size: int, number: tuple[int, ...], rank: int) -> _Joined:
        assert isinstance(number, tuple)
        assert len(number) == 128
        with self._lock:
            world = self.worlds.setdefault(number, _World(size))
        return _Joined(self, world, rank)


class _Joined:
    """One rank of a world; all pointers are of the CPU."""

    def __init__(self, nccl: FakeNccl, world: _World, rank: int) -> None:
        self._nccl, self._world, self._rank = nccl, world, rank

    def _array(self, at: int, count: int, kind: int) -> np.ndarray[Any, Any]:
        type_ = np.dtype(self._nccl._TYPES[kind])
        return np.frombuffer((ctypes.c_char * (count * type_.itemsize)).from_address(at), type_)

    def _note(self, call: str, stream: int) -> None:
        self._nccl.calls.append(call)
        self._nccl.streams.add(stream)

    def allReduce(self, given: int, taken: int, count: int, kind: int, how: int, stream: int) -> None:
        self._note("allReduce", stream)
        assert how == FakeNccl.NCCL_SUM
        parts = self._world.meet(self._rank, self._array(given, count, kind))
        total = np.sum(parts, axis=0)
        self._world.barrier.wait(10)
        self._array(taken, count, kind)[:] = total

    def broadcast(self, given: int, taken: int, count: int, kind: int, root: int, stream: int) -> None:
        self._note("broadcast", stream)
        assert (kind, root) == (FakeNccl.NCCL_UINT8, 0)
        source = self._world.meet(self._rank, given)[0]
        ctypes.memmove(taken, ctypes.string_at(source, count), count)
        self._world.barrier.wait(10)

    def send(self, given: int, count: int, kind: int, peer: int, stream: int) -> None:
        self._note("send", stream)
        assert kind == FakeNccl.NCCL_FLOAT32
        key = (self._rank, peer)
        with self._world.posted:
            self._world.mail[key] = (given, count)
            self._world.posted.notify_all()
            assert self._world.posted.wait_for(lambda: key not in self._world.mail, 10)

    def recv(self, taken: int, count: int, kind: int, peer: int, stream: int) -> None:
        self._note("recv", stream)
        key = (peer, self._rank)

        def receive() -> None:
            with self._world.posted:
                assert self._world.posted.wait_for(lambda: key in self._world.mail, 10)
                given, sent = self._world.mail.pop(key)
                assert sent == count
                ctypes.memmove(taken, given, 4 * count)
                self._world.posted.notify_all()

        self._nccl._own.group.append(receive)


def install(monkeypatch: pytest.MonkeyPatch) -> FakeNccl:
    """Return the NCCL that cupy brings from now on; torch's stream is 77, pinned memory is any memory."""
    nccl = FakeNccl()
    cuda = SimpleNamespace(nccl=nccl, Device=lambda index: nullcontext())
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: FakeStream(77))
    pin(monkeypatch)
    return nccl


def pin(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the bytes of each piece of pinned memory that is asked for from now on; it is any memory."""
    asked: list[int] = []

    def pinned(x: Tensor) -> Tensor:
        asked.append(x.nbytes)
        return torch.empty(x.shape, dtype=x.dtype)

    monkeypatch.setattr(staged, "pinned", pinned)
    return asked
