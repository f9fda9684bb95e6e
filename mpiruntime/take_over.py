"""Take ranks out of all groups, because they shall leave or compute wrong: others take over. Rank 0, main thread.

For each replica that has a part on such a rank, one after the other:

    another rank takes its place in the group   the new replica is loaded beside the old one where memory allows,
                                                else the old one finishes what it has and goes first
    the new one takes the requests from now on  the old one finishes what it has, until its time is over
    no other rank can, but there are replicas   the old one finishes what it has
    no other rank can                           nothing changes

The rank stays in the job, since a world of MPI has a fixed size, but nothing is placed on it until it comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ollampi.mpiruntime.cluster_view import node_id
from ollampi.mpiruntime.errors import ConflictError, MemoryShortError, ModelError, code_of
from ollampi.mpiruntime.eviction import NotYet
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.inbox import Event
from ollampi.mpiruntime.placed import Coming, Move
from ollampi.mpiruntime.spares import stand_ins
from ollampi.mpiruntime.step import Load

_AGAIN_S = 10.0  # until somebody is looked for again who takes over from a rank that computes wrong


@dataclass(eq=False)
class _Leaver:
    """A rank that is being taken out. fault: what is wrong with it, empty where it was told to leave.

    ends_at: when its running requests end, on time.monotonic's clock; told: gets the one event that answers;
    unfinished: how many requests had to end; moved: what became of its replicas, in words.
    """

    rank: int
    fault: str
    ends_at: float
    told: Callable[[Event], None]
    unfinished: int = 0
    moved: list[str] = field(default_factory=list)
    coming: Coming | None = None


class TakeOver:
    """The ranks that leave; `look` is called several times a second, between steps.

    end_requests: ends the requests of a replica with an error and returns how many these were.
    """

    def __init__(self, models: Models, end_requests: Callable[[HostedModel, str], int]) -> None:
        self._models = models
        self._end_requests = end_requests
        self._leavers: list[_Leaver] = []
        self._left: set[int] = set()
        self._again: dict[int, float] = {}

    def leave(self, rank: int, ends_at: float, told: Callable[[Event], None]) -> None:
        """Begin to take a rank out; `told` gets the answer when it has left, or cannot.

        Raise ConflictError where it cannot, and NotYet where a model is being loaded.
        """
        node = node_id(rank)
        if rank == 0:
            raise ConflictError(f"{node} coordinates the job and cannot leave alone; leave out node_id to end the job")
        if rank in self._left:
            raise ConflictError(f"{node} has left already; a join with node_name={node} brings it back")
        if any(leaver.rank == rank for leaver in self._leavers):
            raise ConflictError(f"{node} is leaving already")
        if (loading := self._models.loading) is not None:
            raise NotYet({loading.name})
        self._begin(_Leaver(rank, "", ends_at, told))

    def come_back(self, rank: int) -> None:
        """Place models on a rank that has left again; raise ConflictError where it has not."""
        if rank not in self._left:
            raise ConflictError(f"{node_id(rank)} has not left")
        self._left.discard(rank)
        self._models.use([*self._models.usable, rank])
        if self._models.runner.health is not None:
            self._models.runner.health.come_back(rank)

    def look(self, now: float) -> bool:
        """Go on at a time of time.monotonic; return whether anything may have changed for those who wait."""
        self._find_faulty(now)
        leavers = list(self._leavers)
        for leaver in leavers:
            if now >= leaver.ends_at:
                self._end_running(leaver)
        for leaver in leavers:
            if self._models.loading is None:
                self._go_on(leaver)
        return bool(leavers)

    def end(self) -> None:
        """Answer those who wait for a rank to leave: the job ends first."""
        for leaver in self._leavers:
            leaver.told({"kind": "error", "code": "shutdown", "message": "the whole job is leaving"})
        self._leavers.clear()

    def _find_faulty(self, now: float) -> None:
        """Begin to take out ranks that compute wrong; where nobody can take over, tell why."""
        health = self._models.runner.health
        if health is None or self._models.loading is not None:
            return
        for rank, fault in health.faulty().items():
            if any(leaver.rank == rank for leaver in self._leavers) or now < self._again.get(rank, now):
                continue
            try:
                self._begin(_Leaver(rank, fault, now, lambda event: None))
            except ConflictError as e:
                self._again[rank] = now + _AGAIN_S
                health.stays(rank, str(e))

    def _begin(self, leaver: _Leaver) -> None:
        """Place nothing more on a rank, if others can take over; raise ConflictError."""
        rest = [rank for rank in self._models.usable if rank != leaver.rank]
        if not rest:
            raise ConflictError(f"{node_id(leaver.rank)} is the last rank that may hold weights; start more ranks")
        for move in self._moves(leaver.rank):
            self._way(move, leaver.rank)
        self._models.use(rest)
        self._leavers.append(leaver)

    def _end_running(self, leaver: _Leaver) -> None:
        """End the requests of replicas that have a part on a rank; they get no new ones."""
        why = f"computes wrong ({leaver.fault})" if leaver.fault else "left before this answer was complete"
        for model in self._models.hosted():
            if leaver.rank in model.ranks:
                model.closed = True
                leaver.unfinished += self._end_requests(model, f"rank {leaver.rank} {why}; ask again")

    def _go_on(self, leaver: _Leaver) -> None:
        """Do the next thing that nobody must be waited for."""
        coming, leaver.coming = leaver.coming, None
        if coming is not None and coming.error is not None:
            self._give_up(leaver, str(coming.error))
            return
        moves = self._moves(leaver.rank)
        if moves and (moves[0].old.idle or not moves[0].old.closed):
            try:
                self._move(leaver, moves[0])
            except ConflictError as e:
                self._give_up(leaver, str(e))
        elif not any(leaver.rank in model.ranks for model in self._models.hosted()):
            self._finish(leaver)

    def _move(self, leaver: _Leaver, move: Move) -> None:
        """Begin to load a replica anew, close it where it must go first, or do without it; raise ConflictError."""
        name, found = move.placed.ref.name, self._way(move, leaver.rank)
        if found is None:
            self._models.drop(move)
            leaver.moved.append(f"{name} has one replica less")
            return
        ranks, load, first = found
        if not first and not move.old.idle:
            move.old.closed = True
            return
        leaver.coming = self._models.begin_move(move, ranks, load, first)
        leaver.moved.append(f"{name} lies on {', '.join(map(node_id, ranks))}")

    def _way(self, move: Move, rank: int) -> tuple[tuple[int, ...], Load, bool] | None:
        """Return the ranks on which a replica is to lie, how it is loaded, and whether that can be before it goes.

        None: it goes, and others of the model stay. Raise ConflictError where neither can be.
        """
        others, name = [r for r in move.placed.replicas if rank not in r.ranks], move.placed.ref.name
        able = self._stand_ins(move, rank)
        error = None
        for first in (True, False):
            for other in able:
                ranks = tuple(sorted({other, *move.old.ranks} - {rank}))
                try:
                    return ranks, self._models.fits(move, ranks, first), first
                except MemoryShortError as e:
                    error = error or e
                except ModelError as e:
                    raise ConflictError(f"model {name} cannot be loaded elsewhere: {e}") from e
        if others:
            return None
        lies = ", ".join(map(node_id, move.old.ranks))
        why = f"not enough memory: {error}" if error else "every rank that may hold weights holds a part of it"
        raise ConflictError(
            f"{node_id(rank)} cannot leave alone: the replica of {name} on {lies} would stop, and no rank can take"
            f" over: {why}; place the model on fewer ranks, unload it, or start more ranks"
        )

    def _stand_ins(self, move: Move, rank: int) -> list[int]:
        """Return the ranks that may take the place of another one in a replica's group, the best first."""
        held: dict[int, int] = {}
        for report in [report for model in self._models.hosted() for report in model.reports]:
            held[report.rank] = held.get(report.rank, 0) + report.held_bytes
        taken = {r for replica in move.placed.replicas for r in replica.ranks}
        return stand_ins(rank, self._models.runner.facts, self._models.usable, held, taken)

    def _moves(self, rank: int) -> list[Move]:
        """Return the replicas with a part on a rank that nothing has replaced yet."""
        return [Move(p, replica) for p in self._models.placed() for replica in p.replicas if rank in replica.ranks]

    def _finish(self, leaver: _Leaver) -> None:
        """Note that a rank holds nothing more."""
        self._leavers.remove(leaver)
        self._left.add(leaver.rank)
        if self._models.runner.health is not None:
            why = f"it was taken out: {leaver.fault}" if leaver.fault else "it was told to leave"
            self._models.runner.health.leave(leaver.rank, "; ".join([why, *leaver.moved]))
        leaver.told({"kind": "departed", "unfinished": leaver.unfinished, "moved": leaver.moved})

    def _give_up(self, leaver: _Leaver, why: str) -> None:
        """Leave a rank where it is; a replica that had to go before its successor failed is lost."""
        self._leavers.remove(leaver)
        self._models.use([*self._models.usable, leaver.rank])
        for move in self._moves(leaver.rank):
            move.old.closed = False
            if move.old.gone:
                self._models.drop(move)
        leaver.told({"kind": "error", "code": code_of(ConflictError()), "message": why})
        if leaver.fault and self._models.runner.health is not None:
            self._again[leaver.rank] = leaver.ends_at + _AGAIN_S
            self._models.runner.health.stays(leaver.rank, why)
