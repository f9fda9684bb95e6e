"""A stand-in for cupy and for torch's view of a GPU: launches are recorded, and run by an emulation on the CPU."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ollampi.kernels import gpu
from support.emulated import built, start

MULTIPROCESSORS = 1  # few, so that short vectors make warps take several tiles
NAMES = [f"{name}_{level}" for name in ("encode", "decode_sum", "recode", "decode_sum_norm") for level in range(5)]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ for the emulation")


def emulation() -> ctypes.CDLL:
    """Return the kernels as g++ compiles them behind the emulation's header."""
    return built("\n".join([gpu.source(), *(f"EMULATE({name})" for name in NAMES)]))


@dataclass
class Launch:
    """One start of a kernel, as cupy saw it."""

    name: str
    blocks: int
    threads: int
    arguments: tuple[Any, ...]
    device: int
    stream: int


@dataclass
class FakeCupy:
    """What kernels/gpu.py takes of cupy. emulated: whether kernels are run as well."""

    emulated: bool
    launches: list[Launch] = field(default_factory=list)
    compiled: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    devices: list[int] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        stream = SimpleNamespace(from_external=lambda s: self._within(self.streams, s.__cuda_stream__()[1]))
        self.cuda = SimpleNamespace(Device=lambda i: self._within(self.devices, i), Stream=stream)

    @contextmanager
    def _within(self, stack: list[int], item: int) -> Iterator[None]:
        stack.append(item)
        try:
            yield
        finally:
            stack.pop()

    def RawModule(self, code: str, options: tuple[str, ...]) -> SimpleNamespace:
        self.compiled.append((code, options))
        assert self.devices, "a module belongs to the device that is current"
        return SimpleNamespace(compile=lambda: None, get_function=self._function)

    def _function(self, name: str) -> Any:
        assert name in NAMES

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            self.launches.append(Launch(name, grid[0], block[0], arguments, self.devices[-1], self.streams[-1]))
            assert all(isinstance(a, np.generic) or a.size == 1 for a in arguments), "cupy takes these by value"
            if self.emulated:
                places = [np.ascontiguousarray(a) for a in arguments]
                pointers = (ctypes.c_void_p * len(places))(*(place.ctypes.data for place in places))
                start(emulation(), name, grid, block[0], pointers)

        return launch


class FakeStream:
    """A stream of torch, as cupy sees it."""

    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.cuda_stream


def install(monkeypatch: pytest.MonkeyPatch, emulated: bool = True) -> FakeCupy:
    """Return the cupy that kernels/gpu.py finds from now on, beside a torch that has one GPU with stream 77."""
    fake = FakeCupy(emulated)
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: FakeStream(77))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu._kernels.cache_clear()
    return fake
