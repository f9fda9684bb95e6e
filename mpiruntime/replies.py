"""Write what ranks answer to rank 0: what a step is made for, what they need or hold, or an error."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ollampi.mpiruntime.cache_size import RankMemory
from ollampi.mpiruntime.decoder import Output
from ollampi.mpiruntime.load_report import LoadReport

_LINE_BYTES = 64  # where each tensor begins at a multiple, so that every number of it lies where it should
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Reply:
    """An answer of a rank about the model with a number: to a step that of its group's first, else each rank's own.

    report: of a load; memories: what a check found, for each replica; part: of the model, whose values are not finite,
    empty for none; error: why there is no answer, empty for one; seconds: that a step took, halved: whether in halves.
    """

    number: int
    output: Output = field(default_factory=Output)
    report: LoadReport | None = None
    memories: list[RankMemory] = field(default_factory=list)
    part: str = ""
    error: str = ""
    seconds: float = 0.0
    halved: bool = False
    rank: int = 0


def encode_reply(reply: Reply) -> bytes:
    """Return the answer as bytes: JSON, which has shapes and dtypes, then the numbers of the tensors. No pickle."""
    tensors = {name: x.cpu().contiguous() for name, x in vars(reply.output).items() if x is not None}
    head: dict[str, Any] = {"number": reply.number, "part": reply.part, "error": reply.error}
    head |= {"seconds": reply.seconds, "halved": reply.halved, "rank": reply.rank}
    head["tensors"] = [(name, str(x.dtype).removeprefix("torch."), list(x.shape)) for name, x in tensors.items()]
    if reply.report is not None:
        head["report"] = asdict(reply.report)
    head["memories"] = [asdict(memory) for memory in reply.memories]
    text = json.dumps(head).encode()
    parts: list[bytes | memoryview] = [
        text,
        *(memoryview(x.view(-1).view(torch.uint8).numpy()) for x in tensors.values()),
    ]
    return b"".join([len(text).to_bytes(_LINE_BYTES, "little"), *(piece for part in parts for piece in _whole(part))])


def decode_reply(data: bytes | bytearray) -> Reply:
    """Return the answer that `encode_reply` wrote; its tensors lie in `data` where that can be written."""
    memory = data if isinstance(data, bytearray) else bytearray(data)
    at, length = _LINE_BYTES, int.from_bytes(memory[:_LINE_BYTES], "little")
    head = json.loads(memory[at : at + length])
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape in head["tensors"]:
        at += length + -length % _LINE_BYTES
        count = math.prod(shape)
        length = count * _DTYPES[dtype].itemsize
        flat = torch.frombuffer(memory, dtype=_DTYPES[dtype], count=count, offset=at) if count else torch.empty(0)
        tensors[name] = flat.to(_DTYPES[dtype]).view(shape)
    found = [RankMemory(**each) for each in head["memories"]]
    report = LoadReport(**head["report"]) if "report" in head else None
    told = head["part"], head["error"], head["seconds"], head["halved"], head["rank"]
    return Reply(head["number"], Output(**tensors), report, found, *told)


def _whole(part: bytes | memoryview) -> tuple[bytes | memoryview, bytes]:
    """Return a part and what fills its last line."""
    return part, bytes(-len(part) % _LINE_BYTES)
