"""What a rank of a test over hosts does: `ranks.py WORK ARGUMENT...`; rank 0 prints what it finds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from support.checkpoints import PROMPT
from support.worlds import generate, load_and_compute, run_engine

from ollampi.launcher import assemble
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.compressed import Compressed
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.exchange import choose_exchange
from ollampi.mpiruntime.exchange_plan import Choice, always
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.hierarchical import hierarchical
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.world import survey

LIMIT_S = 300.0
SETTINGS = EngineSettings(context_length=64, cache_tokens=64, block_size=4, max_step_tokens=7)


def text(world: Communicator, comm: Communicator, folder: str, out: str) -> str:
    """Return the greedy text after PROMPT; write its logits."""
    logits = load_and_compute(comm, Path(folder), PROMPT, [9, 1, 5, 1, 1])
    messages = [generate(0, Path(folder), PROMPT, sampling=Sampling(temperature=0.0), max_tokens=9)]
    recorder = run_engine(comm, messages, SETTINGS)
    if recorder is None or logits is None:
        return ""
    Path(out).write_bytes(logits.numpy().tobytes())
    return str(recorder.tokens(0))


def sums(world: Communicator, comm: Communicator, count: str, calls: str) -> str:
    """Return whether all ranks got the same right bits from all-reduces of so many values each."""
    x = torch.randn(int(count), generator=torch.Generator().manual_seed(comm.rank))
    for _ in range(int(calls)):
        total = comm.all_reduce(x)
    whole = comm.all_reduce(torch.full((int(count),), float(comm.rank)))
    right = bool((whole == sum(range(comm.size))).all())
    return str((right, len(set(comm.collect(total.numpy().tobytes()[:4096])))))


def moved(world: Communicator, comm: Communicator, counts: str, calls: str) -> str:
    """Return the most bytes that a rank sent and received for an all-reduce, from its interface, for each of `counts`,
    numbers of values such as "65536,1000".
    """
    found = []
    for count in counts.split(","):
        x = torch.randn(int(count), generator=torch.Generator().manual_seed(comm.rank))
        comm.all_reduce(x)
        before = _counted(world)
        for _ in range(int(calls)):
            comm.all_reduce(x)
        most = max(after - b for b, after in zip(before, _counted(world), strict=True))
        found.append(str(most // int(calls)))
    return " ".join(found)


def _counted(world: Communicator) -> list[int]:
    """Return the bytes that each rank's host has sent and received."""
    world.collect(b"")
    rows = Path("/proc/net/dev").read_text().splitlines()
    fields = next(row for row in rows if row.strip().startswith("eth0:")).split(":")[1].split()
    return [int(text) for text in world.collect(str(int(fields[0]) + int(fields[8])).encode())]


def way_of(world: Communicator, way: str) -> Communicator:
    """Return plain MPI ("mpi"), the hosts' shared memory and plain MPI between leaders ("over"), a level ("2") in
    shares, or a level in the way that is chosen at the start ("own2").
    """
    facts = survey(world)
    if way.startswith("own"):
        settings = ExchangeSettings(communication_strategy="compressed", compression_level=int(way[3:]))
        return choose_exchange(world, facts, settings, crowded=True).sums
    if not way.isdigit():
        return hierarchical(world, facts, crowded=True) if way == "over" else world
    assert isinstance(world, Mpi)
    link = world.link(range(world.size), LIMIT_S)
    assert link is not None
    return Compressed(world, link, always(Choice("scattered", int(way))))


def main() -> None:
    """Do the work in one way to exchange tensors, or in several in turn: "0,2"."""
    way, work, *arguments = sys.argv[1:]
    world = assemble.communicator()
    works: dict[str, Callable[..., str]] = {"text": text, "sums": sums, "moved": moved}
    told = [works[work](world, way_of(world, each), *arguments) for each in way.split(",")]
    if world.rank == 0:
        print(*told, sep="\n", flush=True)
    if isinstance(world, Mpi):
        world.finish()


if __name__ == "__main__":
    main()
