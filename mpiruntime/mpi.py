"""Let the ranks of an MPI job talk: the communicator over MPI, and how a rank enters and leaves MPI."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import mpi4py
import numpy as np
import torch
from torch import Tensor

from ollampi.mpiruntime.communicator import BySums, summable
from ollampi.mpiruntime.errors import WorldError
from ollampi.mpiruntime.interface import interface_variables, interfaces
from ollampi.mpiruntime.mpi_link import Late, MpiLink, give_up
from ollampi.mpiruntime.mpi_mail import MpiMail
from ollampi.mpiruntime.mpi_post import MpiPost

_CONTROL_TAG, _NOTE_TAG, _PART_TAG = 1, 2, 3
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_SEGMENT = re.compile(r"/dev/shm/(?:sm_segment|vader_segment|mpich_shm|ucx_shm)\S*")


def launched_size(environ: Mapping[str, str]) -> int | None:
    """Return the world size that a launcher (mpirun, mpiexec, srun) announced, or None without a launcher."""
    for name in _SIZE_VARIABLES:
        if environ.get(name, "").isdigit():
            return int(environ[name])
    return None


def prepare(environ: MutableMapping[str, str], interface: str | None = None) -> None:
    """Set what MPI reads when it starts, unless the user has set it; measured in docs/architecture.md.

    Open MPI's libfabric components take a second to start and serve no local job; ranks that outnumber the cores must
    yield while they wait. interface: the network between hosts. One that this host does not have is left out, and taken
    out where `ollampi launch` has set it: MPI would warn of it, or end the job, before the ranks can refuse it.
    """
    if interface is not None and interface in interfaces():
        environ.update(interface_variables(interface, environ))
    elif interface is not None:
        for name in interface_variables(interface, {}):
            if environ.get(name) == interface:
                del environ[name]
    local = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    environ.setdefault("OMPI_MCA_btl", "^ofi")
    environ.setdefault("OMPI_MCA_osc", "^ucx")
    if local is not None and local == environ.get("OMPI_COMM_WORLD_SIZE"):
        environ.setdefault("OMPI_MCA_mtl", "^ofi")
    if local is not None and int(local) > len(os.sched_getaffinity(0)):
        environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


def start(expected_size: int) -> Mpi:
    """Enter MPI and return the communicator of all ranks; collective.

    Raise WorldError where the world has another size than the launcher announced: a launcher of one MPI with the
    library of another silently starts that many worlds of one rank.
    """
    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI  # loads the MPI library of this machine; a world of one never gets here

    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)  # for the thread of all_reduce_later
    size = MPI.COMM_WORLD.Get_size()
    if size != expected_size:
        _unlink_mapped()
        MPI.Finalize()
        vendor, version = MPI.get_vendor()
        raise WorldError(
            f"the launcher started {expected_size} ranks but this world has {size}: the mpirun in use does not belong"
            f" to the MPI library in use ({vendor} {'.'.join(map(str, version))}); use that library's own mpirun,"
            " for example with `ollampi launch -n N`"
        )
    world = Mpi(MPI, MPI.COMM_WORLD)
    world.unlink_segments()
    return world


def _unlink_mapped() -> set[str]:
    """Remove the names of all shared-memory files of the MPI library in this process; return them."""
    paths = set(_SEGMENT.findall(Path("/proc/self/maps").read_text(errors="surrogateescape")))
    for path in paths:
        Path(path).unlink(missing_ok=True)
    return paths


class Mpi(BySums):
    """The communicator of the ranks of an MPI job, or of some of them. world: mpi4py's of the same ranks.

    Messages have a communicator of their own, so that they never wait behind activations.
    """

    def __init__(self, mpi: Any, world: Any) -> None:
        self._mpi = mpi
        self._data = world.Dup()
        self._control = world.Dup()
        self._mail = MpiMail(mpi, self._control)
        self.tell, self.settle, self.hear = self._mail.tell, self._mail.settle, self._mail.hear
        self.answer, self.answers = self._mail.answer, self._mail.answers
        self._parts: list[Mpi] = []
        self._whole: Mpi | None = None
        self.rank: int = self._data.Get_rank()
        self.size: int = self._data.Get_size()
        self._notes_sent = self._notes_received = 0
        self._unlinked: set[str] = set()
        self._links: list[Any] = []
        self._posts: list[MpiPost] = []
        self._finishing: list[Callable[[], None]] = []

    @property
    def library(self) -> str:
        """Return the name and version of the MPI library."""
        vendor, version = self._mpi.get_vendor()
        return f"{vendor} {'.'.join(map(str, version))}"

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x over all ranks, in fp64 where x is, else in fp32; moves buffers, collective.

        MPI cannot add bf16.
        """
        x = summable(x).contiguous()
        total = torch.empty_like(x)
        self._data.Allreduce(x.numpy(), total.numpy(), op=self._mpi.SUM)
        return total

    def share_rows(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Return rows [T, D] as their owners [T] have them, in fp32; moves buffers of these alone, collective."""
        order = owners.argsort(stable=True)  # that of the ranks, and of each rank its own
        counts = (owners.bincount(minlength=self.size) * (rows.shape[1] * rows.itemsize)).tolist()
        mine = rows[owners == self.rank].view(torch.uint8).numpy()
        joined = torch.empty_like(rows)
        self._data.Allgatherv([mine, self._mpi.BYTE], [joined.view(torch.uint8).numpy(), counts, self._mpi.BYTE])
        shared = torch.empty(rows.shape)
        shared[order] = joined.float()
        return shared

    def gather(self, x: Tensor) -> Tensor | None:
        """Return x [B, d] of all ranks side by side on rank 0 and None elsewhere; moves buffers, collective."""
        x = x.float().contiguous()
        counts = np.zeros(self.size, dtype=np.int64)
        self._data.Gather(np.array([x.numel()], dtype=np.int64), counts, root=0)
        if self.rank:
            self._data.Gatherv(x.numpy(), None, root=0)
            return None
        flat = np.empty(int(counts.sum()), dtype=np.float32)
        self._data.Gatherv(x.numpy(), [flat, counts.tolist()], root=0)
        parts = np.split(flat, np.cumsum(counts)[:-1])
        return torch.cat([torch.from_numpy(p).view(x.shape[0], -1) for p in parts], dim=-1)

    @property
    def threads(self) -> bool:
        """Return whether several threads may talk at a time."""
        return bool(self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE)

    def link(self, ranks: Sequence[int], limit_s: float, late: Late = give_up, quiet: bool = False) -> MpiLink | None:
        """Return a new link between some ranks, and None on the others; collective over all ranks.

        The link's ranks count in the order of `ranks`. The other values are those of MpiLink. A quiet link is for a
        thread beside the main one; there is none, on any rank, where MPI does not serve several threads.
        """
        if quiet and not self.threads:
            return None
        inside = self.rank in ranks
        comm = self._data.Split(0 if inside else self._mpi.UNDEFINED, list(ranks).index(self.rank) if inside else 0)
        if not inside:
            return None
        self._links.append(comm)
        return MpiLink(self._mpi, comm, ranks, limit_s, late, quiet)

    def broadcast(self, message: bytes | None) -> bytes:
        """Return rank 0's message on every rank. A waiting rank polls: it spins briefly, then sleeps in between."""
        if self.rank:
            return self._mail.receive(_CONTROL_TAG)
        if message is None:
            raise ValueError("rank 0 must pass the message that it broadcasts")
        sends = [self._control.Isend([message, self._mpi.BYTE], r, _CONTROL_TAG) for r in range(1, self.size)]
        self._mpi.Request.Waitall(sends)
        return message

    def collect(self, message: bytes) -> list[bytes]:
        """Return the messages of all ranks on every rank; collective, moves bytes."""
        counts = np.zeros(self.size, dtype=np.int64)
        self._data.Allgather(np.array([len(message)], dtype=np.int64), counts)
        joined = bytearray(int(counts.sum()))
        self._data.Allgatherv([message, self._mpi.BYTE], [joined, counts.tolist(), self._mpi.BYTE])
        ends = np.cumsum(counts).tolist()
        return [bytes(joined[end - count : end]) for end, count in zip(ends, counts.tolist(), strict=True)]

    def share(self, x: Tensor) -> None:
        """Fill x [...] on every rank with rank 0's; moves buffers, collective."""
        self._data.Bcast([x.view(-1).view(torch.uint8).numpy(), self._mpi.BYTE], root=0)

    def notify(self, note: int) -> None:
        """Send a small number to rank 0; may be called from a Python signal handler of the main thread."""
        self._notes_sent += 1
        self._control.Isend([bytes([note]), self._mpi.BYTE], 0, _NOTE_TAG)

    def notes(self) -> list[int]:
        """Return on rank 0 the numbers that came since the last call."""
        notes = []
        while (matched := self._control.Improbe(self._mpi.ANY_SOURCE, _NOTE_TAG)) is not None:
            buffer = bytearray(1)
            matched.Recv([buffer, self._mpi.BYTE])
            notes.append(buffer[0])
        self._notes_received += len(notes)
        return notes

    def within(self, ranks: Sequence[int]) -> Mpi:
        """Return the communicator of `ranks`; collective over these alone. It is freed with this one, or by `leave`."""
        whole = self._data.Get_group()
        group = whole.Incl(list(ranks))
        world = self._data.Create_group(group, _PART_TAG)
        part = Mpi(self._mpi, world)
        for made in (world, group, whole):
            made.Free()
        part._whole = self
        self._parts.append(part)
        return part

    def leave(self) -> None:
        """Free a communicator that `within` returned, with all that was made of it; collective over its ranks."""
        if self._whole is not None:
            self._whole._parts.remove(self)
            self._whole = None
            self._free()

    def post(self) -> MpiPost | None:
        """Return what a thread of each rank may talk through beside the main thread; collective.

        None where the MPI library does not serve several threads.
        """
        if not self.threads:
            return None
        comm = self._data.Dup()
        self._links.append(comm)
        post = MpiPost(self._mpi, comm)
        self._posts.append(post)
        return post

    def on_finish(self, work: Callable[[], None]) -> None:
        """Have something called before MPI is left."""
        self._finishing.append(work)

    def unlink_segments(self) -> None:
        """Remove the names of the MPI library's shared-memory files once all ranks have mapped them; collective.

        The memory stays until its last user is gone, so nothing is left behind however the job ends.
        """
        token = np.zeros(self.size, dtype=np.int8)
        for comm in (self._data, self._control):  # every pair talks once: by then each has mapped the other
            comm.Alltoall(token.copy(), token)
        self._data.Barrier()
        self._unlinked = _unlink_mapped()
        self._data.Barrier()

    def finish(self) -> None:
        """Leave MPI; collective. `notify` must not be called any more."""
        sent = sum(int(count) for count in self.collect(str(self._notes_sent).encode()))
        while self.rank == 0 and self._notes_received < sent:  # MPICH fails where a message was never received
            self.notes()
        if self._mpi.get_vendor()[0] == "Open MPI" and self._mpi.get_vendor()[1] < (5,):
            for path in self._unlinked:  # Open MPI 4 complains at length about files that it cannot remove
                Path(path).touch()
        for work in self._finishing:
            work()
        self._data.Barrier()
        for post in self._posts:
            post.receive()  # likewise
        self._free()
        self._mpi.Finalize()

    def _free(self) -> None:
        """Free the communicators; collective."""
        while self._parts:
            self._parts.pop()._free()
        for link in self._links:
            link.Free()
        self._mail.settle()
        self._data.Free()
        self._control.Free()

    def abort(self, status: int) -> None:
        """End all ranks of the job now; does not return. Not collective."""
        self._mpi.COMM_WORLD.Abort(status)
