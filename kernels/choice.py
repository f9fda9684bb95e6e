"""Choose between the native kernel and torch's operator for a product, by what both took on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels import dense, native, quantised

FORMATS = ("float32", "bfloat16", "q8", "q4")
PLAIN_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 512)  # of tokens, which are tried
QUANTISED_COUNTS = (16, 512)  # torch's operator has to restore the weights, which pays for many tokens if at all
_ROWS, _WIDTH = 1024, 1024  # of a matrix, of which there are so many that a core's own caches do not hold them all
_MATRICES = 4
_TURNS = 3


def counts(name: str) -> tuple[int, ...]:
    """Return the numbers of tokens with which a format is measured; the last one stands for all beyond."""
    return QUANTISED_COUNTS if name in ("q8", "q4") else PLAIN_COUNTS


@dataclass(frozen=True)
class Choice:
    """Of each format the most tokens that the native kernel multiplies faster; of one that is not named: any number."""

    most: dict[str, int]
    _limits: dict[str, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_limits", {name: self._limit(name) for name in FORMATS})

    def is_native(self, name: str, num_tokens: int) -> bool:
        """Return whether the native kernel is to multiply so many tokens by weights of a format."""
        return num_tokens <= self._limits[name]

    def most_native(self, name: str) -> float:
        """Return the most tokens that the native kernel multiplies by weights of a format; -1 for none, inf for any."""
        return self._limits.get(name, -1)

    def told(self, name: str) -> str:
        """Return in words what multiplies by weights of a format."""
        if native.library() is None:
            return "torch's operators (the package was built without a compiler)"
        limit, kernels = self._limits[name], f"native kernels ({native.LEVEL_NAMES[native.level()]})"
        if limit == math.inf:
            return kernels
        if limit == 0:
            return "torch's operators, which are faster here than the native kernels"
        plural = "s" if limit > 1 else ""
        return f"{kernels} in steps of up to {limit:.0f} token{plural}, by torch's operators in larger ones"

    def _limit(self, name: str) -> float:
        """Return the most tokens of the native kernel; what holds for the last count that is tried holds beyond."""
        if native.library() is None:
            return -1
        most = self.most.get(name, counts(name)[-1])
        return most if most < counts(name)[-1] else math.inf


NATIVE = Choice({})


def measure() -> Choice:
    """Return the choice for this machine with the threads that torch has now; takes up to a second or two."""
    if native.library() is None:
        return NATIVE
    return Choice({name: _most(counts(name), *_kernels(name)) for name in FORMATS})


def _most(
    tried: tuple[int, ...], native_kernel: Callable[[Tensor], object], torch_operator: Callable[[Tensor], object]
) -> int:
    """Return the largest of the tried numbers of tokens with which the native kernel is the faster one, or 0."""
    most = lost = 0
    for count in tried:
        x = torch.randn(count, _WIDTH)
        seconds = [float("inf"), float("inf")]
        for _ in range(_TURNS):
            for which, kernel in enumerate((native_kernel, torch_operator)):
                began = time.perf_counter()
                kernel(x)
                seconds[which] = min(seconds[which], time.perf_counter() - began)
        if seconds[0] <= seconds[1]:
            most, lost = count, 0
        else:
            lost += 1
        if lost == 2:  # it was slower twice: more tokens do not change that
            break
    return most


def _kernels(name: str) -> tuple[Callable[[Tensor], object], Callable[[Tensor], object]]:
    """Return the native and torch's product of x with some matrices of a format."""
    plain = [torch.randn(_ROWS, _WIDTH) for _ in range(_MATRICES)]
    if name in ("q8", "q4"):
        coded = [quantised.quantise(weight, int(name[1])) for weight in plain]
        return (
            lambda x: [quantised.matmul(x, weight) for weight in coded],
            lambda x: [quantised.matmul_torch(x, weight) for weight in coded],
        )
    weights = [weight.to(getattr(torch, name)) for weight in plain]
    return (
        lambda x: [dense.matmul(x, weight) for weight in weights],
        lambda x: [F.linear(x.to(weight.dtype), weight) for weight in weights],
    )
