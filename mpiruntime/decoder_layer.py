"""One layer of the decoder: its parts, the norms around them, and the sums over ranks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ollampi.kernels.linear import Matrix
from ollampi.mpiruntime.attention import Attention
from ollampi.mpiruntime.communicator import Communicator, summable
from ollampi.mpiruntime.layers import AnyNorm, norm_of
from ollampi.mpiruntime.mixing import Heads, Mixing
from ollampi.mpiruntime.mixture import Mixture
from ollampi.mpiruntime.mlp import MLP, PlainMLP
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.weights import Weights

Watch = Callable[[str, Tensor], None]
Part = Attention | MLP | PlainMLP | Mixture
Start = Callable[[Tensor], Callable[[], Tensor]]  # a sum over ranks: returns what waits for it
Passage = Generator[None, None, Tensor]  # the way of x [T, D] through a part; it yields while a sum is under way


class HasTensors(Protocol):
    """A part of a model that holds weights."""

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""


@dataclass(frozen=True)
class Cut:
    """How a model is cut, and where its parts meet.

    comm: what is exchanged exactly, logits and what ranks agree on; sums: where activations are summed, and rows of the
    embedding come from, which may travel in fewer bits; spread: experts are dealt out whole, instead of each being cut;
    joint: a layer is summed once (exchange.synchronization_points=attention_only).
    """

    shard: Shard
    comm: Communicator
    sums: Communicator
    spread: bool = False
    joint: bool = False


@dataclass(frozen=True)
class Travel:
    """What the tokens of a step, or some of them, go through the layers with. watch sees x behind each part."""

    mixing: Mixing
    start: Start
    watch: Watch


def look_away(part: str, x: Tensor) -> None:
    """Do nothing."""


class Residual:
    """x + part(x), with norms where the family wants them: before the part, around it, or after the sum."""

    def __init__(self, part: Part, before: AnyNorm | None, behind: AnyNorm | None, after: AnyNorm | None) -> None:
        self.part = part
        self.before = before
        self.behind = behind
        self.after = after

    def __call__(self, x: Tensor, start: Start, *more: Mixing) -> Passage:
        """Return the sum [T, D] in fp32, maybe in the place of x [T, D]; collective."""
        wait = start(self.partial(x, *more))
        yield
        found = self.part.summed(wait())
        x += found if self.behind is None else self.behind(found)
        return x if self.after is None else self.after(x)

    def partial(self, x: Tensor, *more: Mixing) -> Tensor:
        """Return this rank's part of what the part makes of x [T, D], [T, D]; collective where the part is."""
        return self.part(x if self.before is None else self.before(x), *more)

    def parts(self) -> list[HasTensors]:
        """Return the parts that hold weights."""
        return [part for part in (self.before, self.part, self.behind, self.after) if part is not None]


class ParallelLayer:
    """x + attention(n) + MLP(n) for n = norm(x); two all-reduces, or with cut.joint one, which is as exact."""

    def __init__(self, weights: Weights, config: ModelConfig, cut: Cut, heads: Heads, layer: int) -> None:
        self.number = layer
        self.joint = cut.joint
        self.norm = norm_of(weights / config.names.attention_norm, config)
        self.attention = Attention(weights / config.names.attention, config, heads, cut.comm, layer)
        self.mlp = _mlp(weights, config, cut, layer)

    def __call__(self, x: Tensor, travel: Travel) -> Passage:
        """Return the layer's output [T, D] in fp32, in the place of x [T, D]; collective."""
        normed = self.norm(x)
        mixed = self.attention(normed, travel.mixing)
        if self.joint:
            wait = travel.start(summable(mixed) + self.mlp(normed))
            yield
            x += self.mlp.summed(self.attention.summed(wait()))
        else:
            of_attention, of_mlp = travel.start(mixed), travel.start(self.mlp(normed))
            yield
            x += self.attention.summed(of_attention())
            x += self.mlp.summed(of_mlp())
        travel.watch(f"layer {self.number}", x)
        return x

    def parts(self) -> list[HasTensors]:
        """Return the parts that hold weights."""
        return [self.norm, self.attention, self.mlp]


class DecoderLayer:
    """Attention, then the MLP or the experts, each added to what went in; two all-reduces."""

    def __init__(self, weights: Weights, config: ModelConfig, cut: Cut, heads: Heads, layer: int) -> None:
        self.number = layer
        names = config.names
        attention = Attention(weights / names.attention, config, heads, cut.comm, layer)
        self.attention = _residual(weights, config, attention, names.attention_norm, names.attention_sum_norm)
        mlp = _mlp(weights, config, cut, layer)
        self.mlp = _residual(weights, config, mlp, names.mlp_norm, names.mlp_sum_norm)

    def __call__(self, x: Tensor, travel: Travel) -> Passage:
        """Return the layer's output [T, D] in fp32, maybe in the place of x [T, D]; collective."""
        x = yield from self.attention(x, travel.start, travel.mixing)
        travel.watch(f"the attention of layer {self.number}", x)
        x = yield from self.mlp(x, travel.start)
        travel.watch(f"the MLP of layer {self.number}", x)
        return x

    def parts(self) -> list[HasTensors]:
        """Return the parts that hold weights."""
        return self.attention.parts() + self.mlp.parts()


AnyLayer = DecoderLayer | ParallelLayer


def _mlp(weights: Weights, config: ModelConfig, cut: Cut, layer: int) -> MLP | PlainMLP | Mixture:
    """Return what a layer has behind its attention."""
    if config.layers[layer].has_experts:
        return Mixture(weights, config, cut.shard, cut.spread)
    kind = MLP if config.gated else PlainMLP
    return kind(weights / config.names.mlp, config, cut.shard, cut.comm)


def _residual(weights: Weights, config: ModelConfig, part: Part, before: str, after: str) -> Residual:
    """Return a part with the norms that the family has around it, by their names."""
    first = None if config.norms == "after" else norm_of(weights / before, config)
    second = None if config.norms == "before" else norm_of(weights / after, config)
    return Residual(part, first, *((second, None) if config.norms == "around" else (None, second)))


def at_once(comm: Communicator) -> Start:
    """Return what makes sums over ranks before it returns."""

    def start(x: Tensor) -> Callable[[], Tensor]:
        """Return what returns the sum of x [...]; collective."""
        total = comm.all_reduce(x)
        return lambda: total

    return start


def arrived(passages: Iterable[Passage]) -> list[Tensor]:
    """Return what the passages return. Each goes on, in turns, while the sums of the others are under way."""
    ends: dict[int, Tensor] = {}
    under_way = dict(enumerate(passages))
    while under_way:
        for number, passage in list(under_way.items()):
            try:
                next(passage)
            except StopIteration as end:
                ends[number] = end.value
                del under_way[number]
    return [ends[number] for number in sorted(ends)]
