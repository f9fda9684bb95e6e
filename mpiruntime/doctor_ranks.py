"""Measure a job that serves nothing: `python -m ollampi.mpiruntime.doctor_ranks WANTED`, on every rank alike.

WANTED is JSON with the fields of doctor_words.Wanted. What is found goes to stdout at once, a line of JSON behind MARK:

    {"began": HOST}                             a process of this host runs; nothing of MPI has been called
    {"rank": R, "host": HOST}                   MPI has started there
    {"world": SIZE, "library": TEXT}            the world of this rank, where it is not as large as the launcher said
    {"silent": [R, ...], "rank": R}             ranks that do not answer this one over MPI; the job ends then
    {"lost": TEXT}                              why measuring cannot go on
    {"stage": TEXT, "hosts": [HOST, ...]}       what rank 0 does next
    {"hosts": [FACTS, ...], "ranks": [HOST, ...], "library": TEXT, "port": TEXT}
    {"clocks": [[HOST, SECONDS, DOUBT], ...]}   how far hosts are ahead of rank 0's
    {"links": [[HOST, HOST, SECONDS, BYTES_PER_S], ...]}
    {"sum": BYTES, "seconds": S}                an all-reduce over all ranks
    {"folder": [FOUND, ...]}                    as shared_folder has it, by host
    {"model": [DIGESTS, ...]}                   of the model's files, by host
    {"end": true}
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import mpi4py
import numpy as np

from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.doctor_words import FOLDER_BYTES, MARK, SUM_BYTES, Wanted
from ollampi.mpiruntime.errors import LostRank, OllampiError
from ollampi.mpiruntime.exchange import Linked
from ollampi.mpiruntime.exchange_plan import Choice
from ollampi.mpiruntime.hierarchical import by_host
from ollampi.mpiruntime.host_facts import host_facts
from ollampi.mpiruntime.lifetime import die_with
from ollampi.mpiruntime.link import Link
from ollampi.mpiruntime.measuring import measure
from ollampi.mpiruntime.mpi import Mpi, launched_size, prepare, start
from ollampi.mpiruntime.network_figures import ahead, pace
from ollampi.mpiruntime.same_files import digests
from ollampi.mpiruntime.shared_folder import measure_folder
from ollampi.mpiruntime.world import RankFacts, survey

_LONG_BYTES = 4 << 20  # of a message that tells a link's rate
_LONG_SUM_S = 2.0  # after one that takes so long larger ones are left out
_ALL_PAIRS = 32  # hosts, beyond which only some pairs are measured
_ALL_RANKS = 128  # ranks, beyond which each greets only some others
_GREETING_TAG, _GREETING_NAP_S, _LAST_WORDS_S = 77, 0.002, 2.0


def tell(**found: Any) -> None:
    """Print a line for the process that started this job, in one piece."""
    os.write(sys.stdout.fileno(), f"{MARK}{json.dumps(found)}\n".encode())


def pairs(leaders: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs of ranks whose links are measured: all, of many hosts only neighbours and those with rank 0."""
    if len(leaders) <= _ALL_PAIRS:
        return list(combinations(leaders, 2))
    return sorted({*((leaders[0], other) for other in leaders[1:]), *pairwise(leaders)})


def greeted(rank: int, size: int) -> list[int]:
    """Return the ranks that one greets, which greet it too: all, of many those at distances 1, 2, 4 ... both ways."""
    if size <= _ALL_RANKS:
        return [other for other in range(size) if other != rank]
    steps = [1 << power for power in range(size.bit_length() - 1)]
    return sorted({(rank + sign * step) % size for step in steps for sign in (1, -1)} - {rank})


def silent_ranks(mpi: Any, limit_s: float) -> list[int]:
    """Return the ranks whose greeting does not come within the limit; all ranks call it, none waits for another."""
    world, end = mpi.COMM_WORLD, time.monotonic() + limit_s
    others = greeted(world.Get_rank(), world.Get_size())
    words = [np.zeros(1, np.int8) for _ in others]
    requests = [world.Irecv(word, other, _GREETING_TAG) for word, other in zip(words, others, strict=True)]
    sends = [world.Isend(np.ones(1, np.int8), other, _GREETING_TAG) for other in others]
    while not mpi.Request.Testall([*requests, *sends]) and time.monotonic() < end:
        time.sleep(_GREETING_NAP_S)
    # a request that has passed is null now, or has a status that says so
    return [other for other, request in zip(others, requests, strict=True) if not request.Get_status()]


def join(size: int, limit_s: float) -> Mpi | None:
    """Return the communicator of all ranks, None where the world has another size; ends the process for silent ones."""
    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    from mpi4py import MPI  # loads the MPI library of this machine

    MPI.Init_thread(MPI.THREAD_MULTIPLE)
    rank, found = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    if found != size:
        tell(world=found, library=_library(MPI))
        MPI.Finalize()
        return None
    tell(rank=rank, host=socket.gethostname())
    silent = silent_ranks(MPI, limit_s)
    if silent:
        tell(silent=silent, rank=rank)
        time.sleep(_LAST_WORDS_S)  # mpirun ends all with the first; the others have something to say too
        os._exit(1)
    return start(size)


def measured(comm: Communicator, wanted: Wanted) -> None:
    """Measure all, and have rank 0 tell it; collective."""
    facts = survey(comm)
    leaders = [ranks[0] for ranks in by_host(facts)]
    _tell_hosts(comm, wanted, facts, leaders)
    link = comm.link(range(comm.size), wanted.limit_s) if isinstance(comm, Linked) else None
    if link is not None and comm.size > 1:
        _tell_network(comm, link, facts, leaders)
    if wanted.folder is not None:
        _stage(comm, "the shared folder", [facts[leader].host for leader in leaders])
        found = measure_folder(comm, Path(wanted.folder), leaders, FOLDER_BYTES)
        _tell_first(comm, folder=found)
    if wanted.model is not None:
        _stage(comm, "the files of the model", [facts[leader].host for leader in leaders])
        mine = json.dumps(_files(Path(wanted.model)) if comm.rank in leaders else {})
        told = [json.loads(text) for text in comm.collect(mine.encode())]
        _tell_first(comm, model=[told[leader] for leader in leaders])
    _tell_first(comm, end=True)


def _tell_hosts(comm: Communicator, wanted: Wanted, facts: list[RankFacts], leaders: list[int]) -> None:
    """Tell what the hosts are like; collective."""
    mine = host_facts(os.environ) if comm.rank in leaders else {}
    told = [json.loads(text) for text in comm.collect(json.dumps(mine).encode())]
    hosts = [told[leader] | {"ranks": facts[leader].local_size} for leader in leaders]
    library = comm.library if isinstance(comm, Mpi) else ""
    port = _port_taken(wanted.host, wanted.port) if comm.rank == 0 else ""
    _tell_first(comm, hosts=hosts, ranks=[fact.host for fact in facts], library=library, port=port)


def _tell_network(comm: Communicator, link: Link, facts: list[RankFacts], leaders: list[int]) -> None:
    """Tell what clocks and links between hosts and sums over all ranks are like; collective."""
    clocks = []
    for leader in leaders[1:]:
        _stage(comm, "the clocks", [facts[0].host, facts[leader].host])
        clocks.append((facts[leader].host, *ahead(link, 0, leader)))
    _tell_first(comm, clocks=clocks)
    mine = []
    for first, second in pairs(leaders) or [(0, 1)]:
        _stage(comm, "the link", [facts[first].host, facts[second].host])
        found = pace(link, first, second, facts[second].host, _LONG_BYTES)
        if comm.rank == first:
            mine.append((facts[first].host, found.host, found.round_trip_s, found.bytes_per_s))
    told = comm.collect(json.dumps(mine).encode())
    _tell_first(comm, links=[each for text in told for each in json.loads(text)])
    _tell_sums(comm, [facts[leader].host for leader in leaders])


def _tell_sums(comm: Communicator, hosts: list[str]) -> None:
    """Tell how long all-reduces take; collective."""
    sum_ = Choice("MPI", 0)
    for size in SUM_BYTES:
        _stage(comm, f"an all-reduce of {size} bytes", hosts)
        seconds = measure({sum_: comm.all_reduce}, comm, [size])[sum_][size]
        _tell_first(comm, sum=size, seconds=seconds)
        if seconds > _LONG_SUM_S:
            break


def _stage(comm: Communicator, what: str, hosts: list[str]) -> None:
    """Have all ranks come, so that none waits in a measurement for one that is not there yet; collective."""
    comm.collect(b"")
    _tell_first(comm, stage=what, hosts=hosts)


def _tell_first(comm: Communicator, **found: Any) -> None:
    """Tell something on rank 0 alone."""
    if comm.rank == 0:
        tell(**found)


def _port_taken(host: str, port: int) -> str:
    """Return why the server could not listen there, "" where it could."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)  # not so of a name
    return ""


def _files(path: Path) -> dict[str, str]:
    """Return the digests of a model's files on this host; under "error" why there are none."""
    try:
        folder = path if path.is_dir() else path.parent
        files = sorted(each for each in folder.iterdir() if each.suffix in (".safetensors", ".json"))
        return digests(folder, files) if path.is_dir() else digests(path, [path])
    except OSError as error:
        return {"error": f"{error.strerror}: {error.filename}"}


def _library(mpi: Any) -> str:
    vendor, version = mpi.get_vendor()
    return f"{vendor} {'.'.join(map(str, version))}"


def main() -> None:
    """Measure and tell; the exit status is 0 where all was told."""
    wanted = Wanted(**json.loads(sys.argv[1]))
    size = None if wanted.alone else launched_size(os.environ)
    tell(began=socket.gethostname())
    if size is None:
        measured(Single(), wanted)
        return
    die_with(os.getppid())
    prepare(os.environ, wanted.interface)
    comm = join(size, wanted.limit_s)
    if comm is None:
        return
    try:
        measured(comm, wanted)
    except (LostRank, OllampiError) as error:
        tell(lost=str(error))
        time.sleep(_LAST_WORDS_S)
        os._exit(1)
    comm.finish()


if __name__ == "__main__":
    main()
