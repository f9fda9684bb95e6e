"""Let the ranks of one host add and join tensors in memory that all of them have mapped."""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
import select
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ollampi.kernels.native import library
from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.communicator import Around, Communicator, summable
from ollampi.mpiruntime.errors import LostRank, WorldError

SHM = Path("/dev/shm")
_MOST_RANKS = 1024  # as in kernels/cpu/shared_sum.c
_LINE_BYTES = 64
_ALL_SLOTS_BYTES, _SLOT_BYTES = 16 << 20, 256 << 10  # the most: of all slots, of one
_CUT_BYTES = 64 << 10  # measured in docs/benchmarks.md
_SPINS = 500  # some microseconds
_PATIENCE_NS = 30_000_000
_GRACE_S = 2.0  # in which mpirun itself ends the job of a dead rank, with a message that says why


class Layout:
    """Where the parts of a segment for `size` ranks lie: a line for each rank, then two slots for each."""

    def __init__(self, size: int) -> None:
        fitting = _ALL_SLOTS_BYTES // (2 * size) // mmap.PAGESIZE * mmap.PAGESIZE
        self.slot_bytes = max(mmap.PAGESIZE, min(_SLOT_BYTES, fitting))
        self.slots_at = -(-size * _LINE_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
        self.size_bytes = self.slots_at + 2 * size * self.slot_bytes

    def slots(self, rank: int) -> tuple[int, int]:
        """Return where the slots of a rank begin, and their bytes."""
        return self.slots_at + 2 * rank * self.slot_bytes, 2 * self.slot_bytes


class Peers:
    """The processes of the other ranks, as far as this one can watch them."""

    def __init__(self, pids: dict[int, int]) -> None:
        self._poll = select.poll()
        self._ranks: dict[int, int] = {}
        self._seen: float | None = None
        for rank, pid in pids.items():
            try:
                file = os.pidfd_open(pid)
            except OSError:  # an old kernel, or too many files
                continue
            self._ranks[file] = rank
            self._poll.register(file, select.POLLIN)

    def close(self) -> None:
        """Watch nobody any more."""
        for file in self._ranks:
            os.close(file)
        self._ranks, self._poll = {}, select.poll()

    def check(self) -> None:
        """Raise LostRank where a process ended some time before."""
        ended = [self._ranks[file] for file, _ in self._poll.poll(0)]
        if not ended:
            return
        self._seen = self._seen or time.monotonic()
        if time.monotonic() - self._seen > _GRACE_S:
            raise LostRank(f"rank {min(ended)} has ended while another one waited for it")


class SharedMemory(Around):
    """The communicator `inner` whose tensors go through a segment of memory; all ranks are on one host.

    memory: of `Layout(inner.size)`, zeros at first, the same on all ranks; crowded: whether the threads of the ranks
    outnumber their cores. Raise WorldError where no native library was built.
    """

    def __init__(self, inner: Communicator, memory: mmap.mmap, crowded: bool, peers: Peers) -> None:
        native, layout = library(), Layout(inner.size)
        if native is None:
            raise WorldError("the native kernels were not built")
        super().__init__(inner)
        self._native_sum = native.ollampi_shared_sum
        self._native_share = native.ollampi_shared_share
        self._native_gather = native.ollampi_shared_gather
        self._peers = peers
        self.leave = self._leave
        self._memory: ctypes.Array[ctypes.c_char] = (ctypes.c_char * layout.size_bytes).from_buffer(memory)
        self._state = ctypes.create_string_buffer(native.ollampi_shared_room_bytes())
        self._room = ctypes.addressof(self._state)
        start = ctypes.addressof(self._memory)
        spins = 0 if crowded else _SPINS
        native.ollampi_shared_open(
            self._room, start, self.rank, self.size, layout.slots_at, layout.slot_bytes, _CUT_BYTES, spins
        )

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x over all ranks, in fp64 where x is, else in fp32; added in rank order, collective."""
        x = summable(x).contiguous()
        total = torch.empty_like(x)
        given = (self._room, x.data_ptr(), total.data_ptr(), x.nbytes, x.itemsize, _PATIENCE_NS)
        while not self._native_sum(*given):
            self._peers.check()
        return total

    def _leave(self) -> None:
        """Give the memory back, and free what lies beneath; collective."""
        self._peers.close()
        self._memory = (ctypes.c_char * 0)()
        self._around.leave()

    def share(self, x: Tensor) -> None:
        """Fill x [...] on every rank with rank 0's; contiguous, of one shape and dtype everywhere, collective."""
        while not self._native_share(self._room, x.data_ptr(), x.nbytes, _PATIENCE_NS):
            self._peers.check()

    def gather(self, x: Tensor) -> Tensor | None:
        """Return the x [B, d] of all ranks side by side in fp32 on rank 0 and None elsewhere; collective."""
        x = x.float().contiguous()
        rows, width = x.shape
        joined: Tensor | None = None
        while True:
            place = 0 if joined is None else joined.data_ptr()
            done = self._native_gather(self._room, x.data_ptr(), rows, width, place, joined is not None, _PATIENCE_NS)
            if done == 1:
                return joined
            if done < 0:
                joined = torch.empty(rows, -1 - done)
            else:
                self._peers.check()


def share_memory(
    comm: Communicator, crowded: bool, folder: Path = SHM, names: Sequence[int] | None = None
) -> SharedMemory:
    """Return the communicator over a new segment; collective. The ranks are on one host.

    names: what the ranks are called where one of them ends; by default their own numbers. Raise WorldError on all ranks
    where any rank cannot have it.
    """
    agree(comm, lambda: _check(comm), WorldError)
    path = Path(comm.collect(str(folder / f"ollampi-{secrets.token_hex(16)}").encode())[0].decode())
    try:
        agree(comm, lambda: _create(path, comm.size) if comm.rank == 0 else None, WorldError)
        memory = agree(comm, lambda: _map(path, comm.rank, comm.size), WorldError)
    finally:
        if comm.rank == 0:
            path.unlink(missing_ok=True)
    called = range(comm.size) if names is None else names
    return SharedMemory(comm, memory, crowded, Peers({called[rank]: pid for rank, pid in _pids(comm).items()}))


def _check(comm: Communicator) -> None:
    """Raise WorldError where this rank cannot use any segment."""
    if library() is None:
        raise WorldError("the native kernels were not built")
    if comm.size > _MOST_RANKS:
        raise WorldError(f"{comm.size} ranks are more than {_MOST_RANKS}")


def _create(path: Path, size: int) -> None:
    """Make the file; only this user can open it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        layout = Layout(size)
        os.ftruncate(file, layout.size_bytes)
        os.posix_fallocate(file, 0, layout.slots_at)
    finally:
        os.close(file)


def _map(path: Path, rank: int, size: int) -> mmap.mmap:
    """Return the mapped file. Each rank takes the memory of its own slots, so that it is near, and errors come now."""
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        layout = Layout(size)
        os.posix_fallocate(file, *layout.slots(rank))
        return mmap.mmap(file, layout.size_bytes)
    finally:
        os.close(file)


def _pids(comm: Communicator) -> dict[int, int]:
    """Return the process of each other rank whose numbers mean the same here; collective."""
    mine = f"{os.getpid()} {os.readlink('/proc/self/ns/pid')}"
    told = [text.decode().split(" ", 1) for text in comm.collect(mine.encode())]
    return {r: int(pid) for r, (pid, space) in enumerate(told) if r != comm.rank and space == told[comm.rank][1]}
