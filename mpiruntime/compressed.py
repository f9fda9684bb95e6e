"""Add up activations over a link, by the algorithm and in the codes that a plan has for their size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ollampi.kernels.codec import num_bytes
from ollampi.kernels.codecs import codec_of
from ollampi.mpiruntime.algorithms import ALGORITHMS, Room
from ollampi.mpiruntime.communicator import Around, Communicator
from ollampi.mpiruntime.exchange_plan import BENEATH, Choice, Plan
from ollampi.mpiruntime.exchange_thread import ExchangeThread
from ollampi.mpiruntime.link import Link, Parcel

_HEADER_BYTES = 8


class Compressed(Around):
    """The communicator `inner` with sums and gathers over a link between the same ranks, in the same order.

    Sums in fp64, which must be exact, are inner's. plan: the same on all ranks; quiet: another such link, for sums that
    are made by a thread of their own while this one computes; without it they are made at once.
    """

    def __init__(self, inner: Communicator, link: Link, plan: Plan, quiet: Link | None = None) -> None:
        super().__init__(inner)
        self._inner = inner
        self.plan = plan
        self._link = _Counted(link)
        self._sums = _Sums(self._link)
        self._quiet_sums = None if quiet is None else _Sums(_Counted(quiet))
        self._room = Room()
        self._thread = ExchangeThread()
        self._moved = 0
        self.leave = self._leave

    @property
    def wire_bytes(self) -> int:
        """Return the bytes that this rank sent and received so far, over the links and beneath."""
        return self._moved + self._inner.wire_bytes

    def close(self) -> None:
        """End the thread that made sums; none must be started any more."""
        self._thread.close()

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x [...] over all ranks, in fp64 where x is, else in fp32; collective."""
        choice = self.plan.of(4 * x.numel())
        if x.dtype == torch.float64 or choice.algorithm == BENEATH:
            return self._inner.all_reduce(x)
        return self._counted(self._sums(x, choice))

    def all_reduce_later(self, x: Tensor) -> Callable[[], Tensor]:
        """Return what waits for the sum of x [...], which another thread makes meanwhile; collective.

        What lies beneath is not for other threads: it is replaced by an algorithm for large sums.
        """
        sums = self._quiet_sums
        if sums is None or x.dtype == torch.float64:
            return super().all_reduce_later(x)
        planned = self.plan.of(4 * x.numel())
        choice = Choice("scattered", 0) if planned.algorithm == BENEATH else planned
        wait = self._thread.start(lambda: sums(x, choice))
        return lambda: self._counted(wait())

    def gather(self, x: Tensor) -> Tensor | None:
        """Return the x [B, d] of all ranks side by side in fp32 on rank 0 and None elsewhere; collective.

        The widths go before, without an answer, so that this takes no longer.
        """
        x = x.float().cpu().contiguous()
        if self.rank:
            width = torch.tensor([x.shape[1]]).view(torch.uint8)
            self._link.swap([(0, width)], [], "gather")
            self._link.swap([(0, x.view(-1).view(torch.uint8))] if x.numel() else [], [], "gather")
            self._moved += self._link.taken()
            return None
        headers = [torch.zeros(_HEADER_BYTES, dtype=torch.uint8) for _ in range(self.size - 1)]
        self._link.swap([], list(enumerate(headers, 1)), "gather")
        widths = [int(header.view(torch.int64)) for header in headers]
        parts = self._room.parts(*[4 * len(x) * width for width in widths])
        self._link.swap([], [(r, part) for r, part in enumerate(parts, 1) if len(part)], "gather")
        self._moved += self._link.taken()
        found = [part.view(torch.float32).view(len(x), width) for part, width in zip(parts, widths, strict=True)]
        return torch.cat([x, *found], dim=1)

    def share_rows(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Return rows [T, D] as their owners [T] have them, in fp32; collective. Every row goes to all other ranks.

        In the codes that the plan has for a sum of their size, where these are smaller than the rows: then every rank
        reads its own rows from their codes too.
        """
        order = owners.argsort(stable=True)  # that of the ranks, and of each rank its own
        counts = (owners.bincount(minlength=self.size) * rows.shape[1]).tolist()
        mine = rows[owners == self.rank].cpu().contiguous().view(-1)
        level = self.plan.of(4 * rows.numel()).level
        if num_bytes(level, rows.numel()) < rows.nbytes:
            joined = self._rows_in_codes(mine.float(), counts, level)
        else:
            joined = self._plain_rows(mine, counts)
        shared = torch.empty(rows.shape)
        shared[order.cpu()] = joined.view(rows.shape)
        return shared.to(rows.device)

    def _plain_rows(self, mine: Tensor, counts: list[int]) -> Tensor:
        """Return the numbers [sum of counts] of all ranks in rank order in fp32, some of them mine; collective."""
        joined = torch.empty(sum(counts), dtype=mine.dtype)
        parts = list(torch.split_with_sizes(joined.view(torch.uint8), [n * mine.itemsize for n in counts]))
        parts[self.rank].copy_(mine.view(torch.uint8))
        self._swap_rows(parts)
        return joined.float()

    def _rows_in_codes(self, mine: Tensor, counts: list[int], level: int) -> Tensor:
        """Return the numbers [sum of counts] of all ranks as their codes of a level have them; collective."""
        codec = codec_of(level, mine.device)
        parts = self._room.parts(*[num_bytes(level, n) for n in counts])
        if len(mine):
            codec.encode(mine, parts[self.rank])
        self._swap_rows(parts)
        joined = torch.empty(sum(counts))
        for part, numbers in zip(parts, torch.split_with_sizes(joined, counts), strict=True):
            if len(numbers):
                codec.decode_sum([part], numbers)
        return joined

    def _swap_rows(self, parts: list[Tensor]) -> None:
        """Send this rank's part, uint8 [n], to all others and fill theirs; collective."""
        others = [r for r in range(self.size) if r != self.rank]
        sends = [(r, parts[self.rank]) for r in others if len(parts[self.rank])]
        self._link.swap(sends, [(r, parts[r]) for r in others if len(parts[r])], "share_rows")
        self._moved += self._link.taken()

    def _leave(self) -> None:
        """End the thread, and free what lies beneath; collective."""
        self._thread.close()
        self._inner.leave()

    def _counted(self, summed: tuple[Tensor, int]) -> Tensor:
        """Return the sum [...] and count its bytes on the wire. In the thread that computes."""
        total, moved = summed
        self._moved += moved
        return total


class _Counted:
    """A link that counts the bytes that pass over it."""

    def __init__(self, link: Link) -> None:
        self.rank = link.rank
        self.size = link.size
        self._link = link
        self._moved = 0

    def swap(self, sends: Sequence[Parcel], receives: Sequence[Parcel], what: str) -> None:
        """Send bytes and fill buffers with those of others, uint8 [n] each; collective."""
        self._link.swap(sends, receives, what)
        self._moved += sum(part.numel() for _, part in (*sends, *receives))

    def taken(self) -> int:
        """Return the bytes since the last call."""
        moved, self._moved = self._moved, 0
        return moved


class _Sums:
    """Sums over one link, for one thread at a time."""

    def __init__(self, link: _Counted) -> None:
        self._link = link
        self._room = Room()

    def __call__(self, x: Tensor, choice: Choice) -> tuple[Tensor, int]:
        """Return the sum of x [...] over all ranks in fp32, and the bytes that this rank sent and received for it."""
        flat = x.float().cpu().contiguous().view(-1)
        codec = codec_of(choice.level, flat.device)
        total = ALGORITHMS[choice.algorithm](self._link, codec, flat, self._room)
        return total.view(x.shape).to(x.device), self._link.taken()
