"""Know on rank 0 how all ranks are: who beats, who is silent, who computes wrong, and whether the job can serve.

    a beat came lately                        online
    none for two intervals                    suspect
    none for the timeout                      offline

The next beat makes a rank online again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from ollampi.mpiruntime.health_samples import node_samples
from ollampi.mpiruntime.node_health import Change, NodeHealth, Status
from ollampi.mpiruntime.request import Sample
from ollampi.mpiruntime.vitals import Beat
from ollampi.mpiruntime.wire import Message

HISTORY = 256  # changes that are kept
MISSED = 2  # intervals without a beat that make a rank suspect
HANGING_S = 60.0  # that the loop may spend on one thing, unless it waits for other ranks or loads
CHECKS = 3  # intervals of self-tests in which every rank must have worked


@dataclass
class _Node:
    """What is kept of a rank; times on time.monotonic's clock, `since` in unix seconds."""

    seen: float
    since: float
    status: Status = "online"
    beat: Beat | None = None
    worked: float | None = None  # ended a step or a test, or moved on within a step
    stepped: float | None = None
    faults: list[str] = field(default_factory=list)
    left: bool = False  # nothing is placed on it
    stays: str = ""  # why it cannot be taken out, though it has faults


class Health:
    """The health of all ranks; on rank 0, used by any thread.

    beats: whether other ranks send any, which needs threads in MPI; else they count as online while the job lives.
    check_s: between two self-tests, 0 for none. announce: gets a line for each change. waits: whether the main thread
    of rank 0 waits for other ranks or loads a model, and a number that grows with what it does meanwhile. refresh:
    called with the time before anything is told, where no thread beats for rank 0.
    """

    def __init__(
        self,
        size: int,
        interval_s: float,
        timeout_s: float,
        check_s: float,
        beats: bool = True,
    ) -> None:
        self.announce: Callable[[str], None] = lambda line: None
        self.waits: Callable[[], tuple[bool, int]] = lambda: (False, 0)
        self.refresh: Callable[[float], None] = lambda now: None
        self.check_s = check_s
        self.tests: Counter[str] = Counter(passed=0, failed=0)
        self._suspect_s, self._timeout_s = MISSED * interval_s, timeout_s
        self._beats = beats
        self._lock = threading.Lock()
        self._looked = now = time.monotonic()
        self._nodes = [_Node(now, time.time()) for _ in range(size)]
        self._history: deque[Change] = deque(maxlen=HISTORY)
        self._changes = Counter[int]()
        self._loop = "starting"
        self._loaded = -math.inf  # when a rank was last seen to load a model
        self._turned, self._turn = now, (0, 0)
        self._turns = 0

    # ---- what comes in ----

    def take(self, rank: int, beat: Beat, now: float) -> None:
        """Take the beat of a rank that came at a time of time.monotonic."""
        with self._lock:
            node = self._nodes[rank]
            before, node.beat, node.seen = node.beat, beat, now
            if beat["doing"] == "load":
                self._loaded = now
            if beat["step_age"] is not None:
                node.stepped = now - beat["step_age"]
            if beat["work_age"] is not None:
                node.worked = now - beat["work_age"]
            if beat["doing"] == "step" and before is not None and before["turn"] != beat["turn"]:
                node.worked = now
        self.look(now)

    def look(self, now: float) -> None:
        """See who is silent at a time of time.monotonic; called often."""
        lines = []
        with self._lock:
            paused = now - self._looked
            self._looked = now
            for rank, node in enumerate(self._nodes):
                if paused > self._suspect_s / MISSED:  # this rank stood still itself, maybe with all others
                    node.seen = min(now, node.seen + paused)
                lines += self._judge(rank, node, now)
        for line in lines:
            self.announce(line)

    def tested(self, faults: list[list[str]]) -> None:
        """Take what a self-test on all ranks found, by rank; what it does not find any more is mended."""
        lines, now = [], time.monotonic()
        with self._lock:
            self.tests["failed" if any(faults) else "passed"] += 1
            for rank, (node, found) in enumerate(zip(self._nodes, faults, strict=True)):
                node.worked = now
                if found != node.faults:
                    why = "; ".join(found) or "the self-test finds nothing wrong any more"
                    self._note(rank, node, why)
                    lines.append(f"rank {rank}: {why}")
                    node.faults = list(found)
                    node.stays = node.stays if found else ""
        for line in lines:
            self.announce(line)

    def excuse(self, at_work: Collection[int]) -> None:
        """Note which ranks have work now, if any: no self-test is due then, and idle ranks are asked for nothing."""
        with self._lock:
            for rank, node in enumerate(self._nodes):
                if at_work and rank not in at_work and node.beat is not None and not node.beat["doing"]:
                    node.worked = time.monotonic()

    def leave(self, rank: int, why: str) -> None:
        """Note that a rank was taken out of all groups: the job can serve whatever is wrong with it."""
        self._take_out(rank, True, why)

    def come_back(self, rank: int) -> None:
        """Note that models may be placed on a rank again."""
        self._take_out(rank, False, "models may be placed on it again")

    def stays(self, rank: int, why: str) -> None:
        """Note why a rank with faults cannot be taken out."""
        with self._lock:
            is_news, self._nodes[rank].stays = why != self._nodes[rank].stays, why
        if is_news:
            self.announce(f"rank {rank} computes on: {why}")

    def turn(self) -> None:
        """Note that the main loop of rank 0 goes round."""
        with self._lock:
            self._turns += 1
            if self._loop == "starting":
                self._loop = ""

    def end(self) -> None:
        """Note that the loop takes no new work any more."""
        with self._lock:
            self._loop = "shutting down"

    # ---- what is asked ----

    @property
    def all_online(self) -> bool:
        """Return whether no rank is silent."""
        with self._lock:
            return all(node.status == "online" for node in self._nodes)

    def faulty(self) -> dict[int, str]:
        """Return what is wrong with ranks that have faults and were not taken out."""
        with self._lock:
            return {r: "; ".join(node.faults) for r, node in enumerate(self._nodes) if node.faults and not node.left}

    def nodes(self) -> list[NodeHealth]:
        """Return how each rank is, in rank order."""
        now = time.monotonic()
        self.refresh(now)
        with self._lock:
            return [self._health(rank, node, now) for rank, node in enumerate(self._nodes)]

    def history(self) -> list[Change]:
        """Return the latest changes, the oldest first."""
        with self._lock:
            return list(self._history)

    def hangs(self, now: float) -> bool:
        """Return whether the main loop of rank 0 has not moved for long, for a reason of its own."""
        waits, moved = self.waits()
        with self._lock:
            turn = (self._turns, moved)
            if turn != self._turn or waits or self._loop:
                self._turn, self._turned = turn, now
            return now - self._turned >= HANGING_S

    def reasons(self, now: float) -> list[tuple[int, str]]:
        """Return why the job cannot serve now, each with the rank that it concerns; empty where it can."""
        found = [(0, "the main loop hangs")] if self.hangs(now) else []
        window = max(CHECKS * self.check_s, self._timeout_s)
        with self._lock:
            if self._loop:
                found.append((0, self._loop))
            for rank, node in enumerate(self._nodes):
                if node.left:
                    continue
                if node.status != "online":
                    found.append((rank, f"{node.status}: no heartbeat for {now - node.seen:.1f} s"))
                elif self._loop != "starting" and self.check_s and (rank == 0 or self._beats):
                    if node.worked is None:
                        found.append((rank, "has made no step and no self-test yet"))
                    elif (idle_s := now - max(node.worked, self._loaded)) > window:
                        found.append((rank, f"has made no step and no self-test for {idle_s:.0f} s"))
                found += [(rank, fault) for fault in (*node.faults, node.stays) if fault]
        return found

    def answer(self, message: Message) -> Message:
        """Return the answer to a message that asks whether the job can serve; called by the threads that read."""
        now = time.monotonic()
        self.refresh(now)
        told = {"live": not self.hangs(now), "reasons": self.reasons(now)}
        return {"id": message.get("id", 0), "kind": "readiness", **told}

    def samples(self) -> list[Sample]:
        """Return what a scrape shows of the ranks' health."""
        with self._lock:
            changes, tests = dict(self._changes), dict(self.tests)
        return node_samples([vars(node) for node in self.nodes()], changes, tests)

    # ---- within the lock ----

    def _judge(self, rank: int, node: _Node, now: float) -> list[str]:
        """Set a rank's status by the age of its last beat; return a line where it changed."""
        age = now - node.seen if self._beats or rank == 0 else 0.0
        status: Status = "offline" if age > self._timeout_s else "suspect" if age > self._suspect_s else "online"
        if status == node.status:
            return []
        why = "its heartbeat is back" if status == "online" else f"no heartbeat for {age:.1f} s"
        node.status, node.since = status, time.time()
        self._note(rank, node, why)
        return [f"rank {rank} is {status}: {why}"]

    def _take_out(self, rank: int, left: bool, why: str) -> None:
        """Set whether a rank was taken out."""
        with self._lock:
            node = self._nodes[rank]
            node.left, node.since, node.stays = left, time.time(), ""
            self._note(rank, node, why)
        self.announce(f"rank {rank} {'has left' if left else 'is back'}: {why}")

    def _note(self, rank: int, node: _Node, why: str) -> None:
        """Keep a change."""
        self._changes[rank] += 1
        self._history.append(Change(time.time(), rank, _shown(node), why))

    def _health(self, rank: int, node: _Node, now: float) -> NodeHealth:
        """Return how a rank is."""
        known = NodeHealth(rank, _shown(node), node.since, None, faults=list(node.faults))
        beat = node.beat
        if beat is None:
            return known
        return replace(
            known,
            seen_s=max(0.0, now - node.seen),
            cpu_percent=beat["cpu_percent"],
            memory_total=beat["memory_total"],
            memory_available=beat["memory_available"],
            process_bytes=beat["process_bytes"],
            gpus=list(beat["gpus"]),
            step_ms=beat["step_ms"],
            last_token_s=None if node.stepped is None else max(0.0, now - node.stepped),
        )


def _shown(node: _Node) -> Status:
    """Return the status that others see."""
    return "left" if node.left and node.status == "online" else node.status
