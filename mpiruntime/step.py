"""Say what all ranks do next: the messages that rank 0 broadcasts, as plain values."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import NamedTuple


class Chunk(NamedTuple):
    """The tokens of one sequence in a step.

    start: position of tokens[0]; blocks: the sequence's block table, long enough for all its tokens so far;
    num_logits: how many of the last tokens the sampler wants logits of; num_pooled: of how many tokens, before the last
    num_behind, the sum of the hidden states is wanted.
    """

    tokens: list[int]
    start: int
    blocks: list[int]
    num_logits: int
    num_pooled: int = 0
    num_behind: int = 0


@dataclass(frozen=True)
class Step:
    """One forward pass of one model over some chunks; halved: computed in two halves; probed: to find broken values."""

    model: int
    chunks: list[Chunk]
    halved: bool = False
    probed: bool = False

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all chunks."""
        return sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass(frozen=True)
class Load:
    """Load a model under a number; dtype is float32 or bfloat16, context the most positions of one sequence.

    name: under which the ranks count its steps; deterministic: compute so that a text's bits depend on nothing else;
    cache_dtype: float32, bfloat16, int8, or auto for that of the model; quantize: the format of matrices, none, q8, q4
    or auto; shard_cache: the folder in which quantised matrices are kept, None for nowhere; experts: cut, or spread
    whole over the ranks; load: slices, where each rank reads its part of the files, or scatter, where rank 0 reads all;
    adapters: the folders of LoRA adapters that are merged into it in turn; points: as
    ExchangeSettings.synchronization_points; num_streamed: how many layers are read from a file in every step,
    prefetch_factor: how many ahead; ranks: those of the group that holds it, none for all.
    """

    model: int
    path: str
    dtype: str
    context: int
    num_blocks: int
    block_size: int
    name: str = ""
    deterministic: bool = False
    cache_dtype: str = "auto"
    quantize: str = "none"
    shard_cache: str | None = None
    experts: str = "cut"
    load: str = "slices"
    adapters: list[str] = field(default_factory=list)
    points: str = "all"
    num_streamed: int = 0
    prefetch_factor: int = 2
    ranks: list[int] = field(default_factory=list)

    @property
    def kept(self) -> str:
        """Return how the cache keeps its vectors: float32, bfloat16 or int8."""
        return self.dtype if self.cache_dtype == "auto" else self.cache_dtype


@dataclass(frozen=True)
class Check(Load):
    """Find out whether, and with how many blocks, a Load can succeed once the models `leaving` are unloaded.

    num_blocks: the fewest that will do; most_blocks: the most that are of use; fraction: the part of the memory left
    over by the weights that the cache may have beyond num_blocks; drafts: the paths of models that will draft for it,
    with as many blocks; stream: never, auto where the model does not fit otherwise, or always; beside: by host, what
    caches of ranks that are not asked will still take; replicas: the ranks of each where there are several, which get
    as many blocks and streamed layers; `ranks` are those of all then. Changes nothing.
    """

    most_blocks: int = 0
    fraction: float = 1.0
    leaving: list[int] = field(default_factory=list)
    drafts: list[str] = field(default_factory=list)
    stream: str = "never"
    beside: Mapping[str, int] = field(default_factory=dict)
    replicas: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Unload:
    """Forget a model and free its memory."""

    model: int


@dataclass(frozen=True)
class Report:
    """Tell what was counted so far."""


@dataclass(frozen=True)
class Recall:
    """Tell what was traced; `zero` is where its time begins on rank 0's clock."""

    zero: float


@dataclass(frozen=True)
class Examine:
    """Test weights and caches, for so long at most, and sums over all ranks and those of groups.

    groups: the ranks of each, ascending; blocks: as for a CacheCheck.
    """

    budget_s: float
    groups: list[list[int]] = field(default_factory=list)
    blocks: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class LogFrom:
    """Log from a level on."""

    level: str


@dataclass(frozen=True)
class Stop:
    """Leave the loop."""


_STEPS = [b"S", b"H", b"P", b"Q"]  # plain, halved; the same probed
Message = Step | Load | Check | Unload | Report | Recall | LogFrom | Examine | Stop
_BY_NAME = {kind.__name__: kind for kind in (Load, Check, Unload, Report, Recall, LogFrom, Examine, Stop)}


def encode(message: Message) -> bytes:
    """Return the message as bytes: a step as native int32s behind a letter of _STEPS, anything else as JSON."""
    if not isinstance(message, Step):
        return json.dumps([type(message).__name__, asdict(message)]).encode()
    flat = array("i", [message.model])
    for c in message.chunks:
        flat.extend((len(c.tokens), c.start, len(c.blocks), c.num_logits, c.num_pooled, c.num_behind))
        flat.extend(c.tokens)
        flat.extend(c.blocks)
    return _STEPS[2 * message.probed + message.halved] + flat.tobytes()


def decode(data: bytes) -> Message:
    """Return the message that `encode` wrote."""
    if data[:1] not in _STEPS:
        name, values = json.loads(data)
        message: Message = _BY_NAME[name](**values)
        return message
    flat = array("i")
    flat.frombytes(data[1:])
    kind = _STEPS.index(data[:1])
    return Step(flat[0], list(_chunks(flat)), halved=kind % 2 == 1, probed=kind > 1)


def _chunks(flat: array[int]) -> Iterator[Chunk]:
    """Yield the chunks after the model number."""
    at = 1
    while at < len(flat):
        num_tokens, start, num_blocks, *wanted = flat[at : at + 6]
        tokens_end = at + 6 + num_tokens
        blocks_end = tokens_end + num_blocks
        tokens, blocks = flat[at + 6 : tokens_end].tolist(), flat[tokens_end:blocks_end].tolist()
        yield Chunk(tokens, start, blocks, *wanted)
        at = blocks_end
