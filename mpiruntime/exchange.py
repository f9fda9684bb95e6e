"""Choose how the ranks exchange tensors: through shared memory or MPI, by which algorithms, and in which codes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ollampi.kernels.codec import NAMES
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.compressed import Compressed
from ollampi.mpiruntime.errors import ConfigError, WorldError
from ollampi.mpiruntime.exchange_figures import Figured, figures_of
from ollampi.mpiruntime.exchange_plan import (
    BENEATH,
    SIZES,
    Choice,
    Plan,
    always,
    best,
    exact_plan,
    make_plan,
    seconds_of,
)
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.hierarchical import by_host, hierarchical
from ollampi.mpiruntime.link import Link
from ollampi.mpiruntime.measuring import measure, micros
from ollampi.mpiruntime.memory import human
from ollampi.mpiruntime.shared_memory import SHM, SharedMemory, share_memory
from ollampi.mpiruntime.token_cost import SumTimes
from ollampi.mpiruntime.world import RankFacts

SMALL_BYTES, LARGE_BYTES = 8 << 10, 1 << 20
_TOLD_BYTES = (8 << 10, 256 << 10, 4 << 20)  # between hosts: a token of width 2048, and 32 and 512 of them
_SLOWER = 1.2  # how many times as long shared memory may take for large messages and still count as no slower
_LINK_LIMITS = 2  # of timeout_s: the watchdog, which says more, comes first
_SHARED, _MPI = Choice("shared memory", 0), Choice("MPI", 0)


@dataclass(frozen=True)
class Exchange:
    """What was chosen: comm for what must be exact, sums for activations; and in words, for rank 0, which and why.

    No words for a world of one rank. plans: of exact sums and of activations, where sums go over links. timed: what
    sums were measured to take, over the ranks of one host or else over hosts; on rank 0, where anything was measured.
    """

    comm: Communicator
    sums: Communicator
    told: str
    plans: tuple[Plan, Plan] | None = None
    timed: SumTimes | None = None


@runtime_checkable
class Linked(Protocol):
    """A communicator whose ranks can have links."""

    def link(self, ranks: Sequence[int], limit_s: float, *, quiet: bool = False) -> Link | None:
        """Return a new link between some ranks, None on others; collective. Quiet: for a thread; None without any."""


def choose_exchange(
    comm: Communicator, facts: list[RankFacts], settings: ExchangeSettings, crowded: bool, folder: Path = SHM
) -> Exchange:
    """Return how the ranks exchange tensors: what is fastest as far as the settings leave the choice; collective.

    crowded: whether the threads of the ranks outnumber their cores. Raise ConfigError where what is wanted cannot be.
    """
    if comm.size == 1:
        return Exchange(comm, comm, "")
    hosts = by_host(facts)
    if len(hosts) == 1:
        local, told, timed = _local(comm, settings.link, crowded, folder)
        if settings.communication_strategy != "compressed" or settings.compression_level == 0:
            return Exchange(local, local, told + _uncompressed(settings), timed=timed)
        return _planned(comm, local, settings, [0] * comm.size, f"{told}\nactivations through MPI")
    if settings.link == "shared":
        raise _unshared(f"the ranks are on {len(hosts)} hosts")
    layout = [next(i for i, ranks in enumerate(hosts) if fact.rank in ranks) for fact in facts]
    if len(hosts) < comm.size:
        try:
            return _in_stages(comm, facts, settings, layout, crowded, folder)
        except WorldError as e:
            return _planned(comm, comm, settings, layout, f"MPI, between all ranks on {len(hosts)} hosts, since {e}")
    return _planned(comm, comm, settings, layout, f"MPI between {len(hosts)} hosts")


def _local(comm: Communicator, wanted: str, crowded: bool, folder: Path) -> tuple[Communicator, str, SumTimes | None]:
    """Return the exchange of ranks on one host, why in words, and what was measured of it; collective."""
    if wanted == "mpi":
        return comm, "MPI, as asked for", None
    try:
        shared = share_memory(comm, crowded, folder)
    except WorldError as e:
        if wanted == "shared":
            raise _unshared(str(e)) from e
        return comm, f"MPI, since there is no shared memory: {e}", None
    figures = measure({_SHARED: shared.all_reduce, _MPI: comm.all_reduce}, comm, (SMALL_BYTES, LARGE_BYTES))
    ours, theirs = figures[_SHARED], figures[_MPI]
    wins = ours[SMALL_BYTES] < theirs[SMALL_BYTES] and ours[LARGE_BYTES] < _SLOWER * theirs[LARGE_BYTES]
    by_shared, by_mpi = SumTimes(comm.size, ours), SumTimes(comm.size, theirs)
    if wanted == "shared":
        return shared, f"shared memory, as asked for: {_told(ours)} (MPI: {_told(theirs)})", by_shared
    if wins:
        return shared, f"shared memory: {_told(ours)} (MPI: {_told(theirs)})", by_shared
    return comm, f"MPI: {_told(theirs)} (shared memory: {_told(ours)}; taken where it wins both)", by_mpi


def _in_stages(
    comm: Communicator,
    facts: list[RankFacts],
    settings: ExchangeSettings,
    layout: list[int],
    crowded: bool,
    folder: Path,
) -> Exchange:
    """Return the exchange of several hosts, some with several ranks: sums are made in each host first; collective.

    Raise WorldError on all ranks where a host with several cannot share memory.
    """
    found: list[Exchange] = []

    def between(leaders: Communicator) -> Communicator:
        """Return what the leaders' sums go through."""
        way = f"shared memory in each host and MPI between {leaders.size} hosts"
        found.append(_planned(leaders, leaders, settings, layout, way))
        return found[0].sums

    link = _link(comm, settings)
    exact = comm if link is None else Compressed(comm, link, always(Choice(BENEATH, 0)))
    sums = hierarchical(exact, facts, crowded, between, folder)
    plans = found[0].plans if found else None
    made = comm.collect(b"" if plans is None else json.dumps([asdict(p) for p in plans]).encode())
    timed = found[0].timed if found else None
    return Exchange(exact, sums, "".join(each.told for each in found), _read_plans(made[0]), timed)


def _planned(
    comm: Communicator, beneath: Communicator, settings: ExchangeSettings, layout: list[int], way: str
) -> Exchange:
    """Return the exchange over links between all ranks of comm, by a plan that is measured or read; collective.

    beneath: what has the same ranks, and may be better at sums without codes; layout: the host of each rank of the job,
    as a number; way: what the links go through, in words.
    """
    link, quiet = _link(comm, settings), _link(comm, settings, quiet=True)
    if comm.size == 1 or link is None:
        return Exchange(beneath, beneath, way)
    figured = figures_of(comm, beneath, link, settings, layout)
    level, strategy = settings.compression_level, settings.communication_strategy
    plans = exact_plan(figured.figures, comm.size), make_plan(figured.figures, strategy, level, comm.size)
    exact, sums = Compressed(beneath, link, plans[0]), Compressed(beneath, link, plans[1], quiet)
    told = "\n".join([f"{way}: {figured.told}", _choices(plans[1], figured, comm.size)])
    found = {size: seconds_of(figured.figures, plans[1].of(size), size) for size in SIZES}
    timed = SumTimes(comm.size, {size: seconds for size, seconds in found.items() if seconds is not None})
    return Exchange(exact, sums, told, plans, timed)


def _read_plans(text: bytes) -> tuple[Plan, Plan] | None:
    """Return the plans of the hosts' first ranks as rank 0 tells all others."""
    if not text:
        return None
    exact, sums = (Plan(tuple(p["bounds"]), tuple(Choice(**c) for c in p["choices"])) for p in json.loads(text))
    return exact, sums


def choose_for_group(
    comm: Communicator,
    facts: list[RankFacts],
    settings: ExchangeSettings,
    crowded: bool,
    world: Exchange,
    folder: Path = SHM,
) -> Exchange:
    """Return how the ranks of a group exchange tensors: as those of the world do; collective, measures nothing.

    comm: of the group; facts: of its ranks, numbered within it. Where memory cannot be shared, MPI serves.
    """
    hosts, beneath = by_host(facts), comm
    if len(hosts) == 1 and settings.link != "mpi" and (world.plans is not None or isinstance(world.comm, SharedMemory)):
        with suppress(WorldError):
            beneath = share_memory(comm, crowded, folder)
    coded = settings.communication_strategy == "compressed" and settings.compression_level > 0
    if world.plans is None or (len(hosts) == 1 and not coded):
        return Exchange(beneath, beneath, "")
    link, quiet = _link(comm, settings), _link(comm, settings, quiet=True)
    if link is None:
        return Exchange(beneath, beneath, "")
    exact = Compressed(beneath, link, world.plans[0])
    if len(hosts) in (1, comm.size):
        return Exchange(exact, Compressed(beneath, link, world.plans[1], quiet), "", world.plans)

    def between(leaders: Communicator) -> Communicator:
        """Return what the sums of the hosts' first ranks go through."""
        own, thread = _link(leaders, settings), _link(leaders, settings, quiet=True)
        return leaders if own is None or world.plans is None else Compressed(leaders, own, world.plans[1], thread)

    try:
        return Exchange(exact, hierarchical(exact, facts, crowded, between, folder), "", world.plans)
    except WorldError:
        return Exchange(exact, Compressed(beneath, link, world.plans[1], quiet), "", world.plans)


def _link(comm: Communicator, settings: ExchangeSettings, quiet: bool = False) -> Link | None:
    """Return a link between all ranks of comm, or None where there can be none; collective."""
    limit_s = _LINK_LIMITS * settings.timeout_s
    return comm.link(range(comm.size), limit_s, quiet=quiet) if isinstance(comm, Linked) else None


def _choices(plan: Plan, figured: Figured, ranks: int) -> str:
    """Return in words how sums of some sizes are made, and what that takes beside the best way without codes."""
    told = []
    for size in _TOLD_BYTES:
        choice, exact = plan.of(size), best(figured.figures, size, 0, ranks)
        took = micros(figured.figures[choice][size])
        way = choice.algorithm.replace("_", " ") if choice.algorithm != BENEATH else "MPI's own sum"
        beside = f" (fp32: {micros(figured.figures[exact][size])} us)" if choice.level else ""
        told.append(f"{human(size)} by {way} in {NAMES[choice.level]}, {took} us{beside}")
    return "sums of " + "; ".join(told)


def _uncompressed(settings: ExchangeSettings) -> str:
    """Return in words that the sums of one host have no codes, and that a table, where there is one, is not used."""
    return "; not compressed" + (f"; {settings.table} is not used" if settings.table is not None else "")


def _told(seconds: Mapping[int, float]) -> str:
    """Return the times in words, such as "8 KiB in 3.1 us and 1 MiB in 180 us"."""
    return " and ".join(f"{human(size)} in {micros(seconds[size])} us" for size in (SMALL_BYTES, LARGE_BYTES))


def _unshared(why: str) -> ConfigError:
    """Return the error of a world that cannot share memory although it is asked to."""
    return ConfigError(f"exchange.link=shared cannot be had: {why}; use exchange.link=auto or exchange.link=mpi")
