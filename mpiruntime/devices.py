"""Give each rank its device: a GPU of its host, shared where there are fewer than ranks, or the CPU."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import torch

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.world import RankFacts

CPU = "cpu"


@dataclass(frozen=True)
class Gpu:
    """One GPU as a rank sees it: an identity that no other GPU of any host has, and its name."""

    identity: str
    name: str


class Gpus(Protocol):
    """The GPUs that this process may use; CUDA_VISIBLE_DEVICES and the launcher may hide others."""

    def visible(self) -> list[Gpu]:
        """Return them in the order in which they are numbered here."""

    def use(self, number: int) -> None:
        """Make one of them the current one of this thread."""

    def free_bytes(self, number: int) -> int:
        """Return what can be taken of its memory, with what this process has taken from it and does not need."""


class CudaGpus:
    """The GPUs that torch sees; none where it was built without CUDA or finds no driver."""

    def visible(self) -> list[Gpu]:
        """Return them in torch's order."""
        if not torch.cuda.is_available():
            return []
        found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        return [Gpu(str(each.uuid), each.name) for each in found]

    def use(self, number: int) -> None:
        """Make one of them the current one of this thread."""
        torch.cuda.set_device(number)

    def free_bytes(self, number: int) -> int:
        """Return what the driver has left, with what torch keeps for later."""
        return free_on(torch.device("cuda", number))


def free_on(device: torch.device) -> int:
    """Return the bytes that can still be taken on a GPU: the driver's, and those that torch keeps for later."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def place(comm: Communicator, facts: list[RankFacts], wanted: str, gpus: Gpus) -> list[RankFacts]:
    """Return the facts with the device of each rank, equal on every rank; collective.

    wanted: auto, cpu or cuda; auto takes a GPU where this rank sees one. Raise ConfigError on all ranks where a rank
    that is to have a GPU sees none, or where some ranks would compute on GPUs and some on CPUs.
    """
    mine = [] if wanted == CPU else gpus.visible()
    told = [json.loads(text) for text in comm.collect(json.dumps([asdict(gpu) for gpu in mine]).encode())]
    seen = [[Gpu(**each) for each in rank] for rank in told]
    if wanted == CPU or (wanted == "auto" and not any(seen)):
        return facts
    check_all_see(facts, seen, wanted)
    numbers = deal(seen)
    number = numbers[comm.rank]
    gpus.use(number)
    free = [int(text) for text in comm.collect(str(gpus.free_bytes(number)).encode())]
    return [
        replace(fact, device=f"cuda:{number}", gpu=found[number].name, identity=found[number].identity, gpu_bytes=left)
        for fact, found, number, left in zip(facts, seen, numbers, free, strict=True)
    ]


def check_all_see(facts: Sequence[RankFacts], seen: list[list[Gpu]], wanted: str) -> None:
    """Raise ConfigError where a rank sees no GPU, with the ranks and the remedy."""
    without = [fact.rank for fact, found in zip(facts, seen, strict=True) if not found]
    if not without:
        return
    where = ", ".join(f"{rank} on {facts[rank].host}" for rank in without)
    if len(without) == len(seen):
        raise ConfigError(
            "device=cuda needs a GPU for each rank and no rank sees one; use device=cpu, or a torch that was built for"
            " CUDA and a CUDA_VISIBLE_DEVICES that names GPUs"
        )
    raise ConfigError(
        f"device={wanted} cannot mix ranks on GPUs with ranks on CPUs, which would wait for each other, and some ranks"
        f" see no GPU: {where}; start ranks where there are GPUs only, let CUDA_VISIBLE_DEVICES name some for each, or"
        " use device=cpu"
    )


def deal(seen: list[list[Gpu]]) -> list[int]:
    """Return for each rank the number, in its own count, of the GPU that fewest earlier ranks have; each sees one.

    Whether ranks see all GPUs of their host, one each, or some: identities tell which are the same.
    """
    users = Counter[str]()
    numbers = []
    for found in seen:
        number = min(range(len(found)), key=lambda n: users[found[n].identity])
        users[found[number].identity] += 1
        numbers.append(number)
    return numbers
