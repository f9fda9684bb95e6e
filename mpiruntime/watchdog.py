"""Find out which rank keeps the others waiting: each rank has a thread that looks how long its work waits.

    a rank waits in a collective for 2/3 of the limit   its thread calls the others' threads
    every thread answers                                with the collective in which its rank waits, or none
    the rank still waits when the limit is over         those that did not answer are missing; in a step, where all
                                                        answered, those that have not come to the collective
    it tells the others                                 and on each of them `lost` is called, which ends the job

A rank that computes, reads files or waits itself has a thread that answers; one that is stopped or cut off has not.
What the threads talk through carries the ranks' heartbeats too (mpiruntime.heartbeat).
Each group of ranks counts its own collectives, and only its ranks are called. One that waits in a step of another group
is not missing: those of that group find out who is.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

_CALL_AT = 2 / 3
_IDLE = ()  # in the place of a group
_LOOKS = 20  # within the limit
LONGEST_S = 0.25  # between two looks


class Post(Protocol):
    """What the threads of all ranks talk through. Nothing is collective, and nothing blocks."""

    rank: int
    size: int

    def send(self, rank: int, message: bytes) -> None:
        """Send a message to a rank."""

    def receive(self) -> list[tuple[int, bytes]]:
        """Return the messages that came since the last call, each with the rank that sent it."""


class Place:
    """Where the work of a rank is, as far as one group of ranks goes; written by its main thread alone.

    turn: collectives begun so far, on all ranks of the group the same ones; what: the one it waits in now, "" for none;
    prompt: whether ranks must come to it within the limit, else they may be busy with something long.
    """

    def __init__(self) -> None:
        self.turn = 0
        self.what = ""
        self.prompt = True

    def come(self, what: str, prompt: bool) -> None:
        """Begin to wait."""
        self.turn += 1
        self.prompt = prompt
        self.what = what

    def go(self) -> None:
        """Go on with the work."""
        self.what = ""

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Wait in something of many collectives until the block ends; ranks that answer may take their time in it."""
        self.come(what, False)
        try:
            yield
        finally:
            self.go()


class _Watch:
    """What is seen of one place: since when it is what it is, and who answered a roll call; ranks: of its group."""

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.place = Place()
        self.ranks = ranks
        self.seen: tuple[int, str] = (0, "")
        self.since = 0.0
        self.called = False
        self.answers: dict[int, _Answer] = {}

    def begin(self, now: float) -> None:
        """Begin to wait anew."""
        self.since, self.called = now, False


class _Answer(NamedTuple):
    """Where another rank is: its turn in the group that calls, the collective of this group in which it waits, if so.

    elsewhere: whether it waits in a step of another group, whose ranks will find out for whom.
    """

    turn: int
    what: str
    elsewhere: bool


class Watchdog:
    """The watch over one rank; `look` is called often, by one thread.

    hosts: of all ranks; lost: called once, with what is to be said, where a rank is missing; longest_s: between two
    looks. beside: called with the time at each look; heard: called with a rank and what it sent by `tell`. Both may be
    set at any time.
    """

    def __init__(
        self,
        post: Post,
        hosts: list[str],
        limit_s: float,
        lost: Callable[[str], None],
        longest_s: float = LONGEST_S,
    ) -> None:
        self.beside: Callable[[float], None] = lambda now: None
        self.heard: Callable[[int, Any], None] = lambda rank, told: None
        self._pause_s = min(limit_s / _LOOKS, longest_s)
        self._post = post
        self._hosts = hosts
        self._limit_s = limit_s
        self._lost = lost
        self._over = False
        self._looked = time.monotonic()
        everybody = tuple(range(post.size))
        self._watches = {everybody: _Watch(everybody)}
        self._watches[everybody].since = self._looked
        self.place = self._watches[everybody].place
        self._watches[_IDLE] = _Watch(everybody)
        self.idle = self._watches[_IDLE].place  # a rank that waits for work
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def at(self, ranks: tuple[int, ...]) -> Place:
        """Return where this rank says in what it waits for the ranks of a group, of which it is one.

        It is one place for as long as the job runs: so turns agree however often a group is made anew.
        """
        if ranks not in self._watches:
            self._watches[ranks] = _Watch(ranks)
        return self._watches[ranks].place

    def start(self) -> None:
        """Look from now on, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def tell(self, rank: int, told: object) -> None:
        """Send plain values to a rank, whose `heard` gets them; called within `beside` alone."""
        self._post.send(rank, json.dumps(["told", told]).encode())

    def look(self, now: float) -> None:
        """Answer the other ranks, and see whether one is missing; now: on time.monotonic's clock."""
        for rank, message in self._post.receive():
            self._take(rank, json.loads(message))
        paused = now - self._looked - 2 * self._pause_s
        self._looked = now
        self.beside(now)
        for key, watch in list(self._watches.items()):  # of which the main thread may make more meanwhile
            if paused > 0:  # this rank stood still itself, maybe with all others: that time does not count
                watch.since += paused
            self._look_at(key, watch, now)

    def _look_at(self, key: tuple[int, ...], watch: _Watch, now: float) -> None:
        """See whether this rank waits too long in one of its places."""
        place = (watch.place.turn, watch.place.what)
        if place != watch.seen or not place[1]:
            watch.seen = place
            watch.begin(now)
        elif now - watch.since >= self._limit_s:
            self._judge(watch, now)
        elif now - watch.since >= _CALL_AT * self._limit_s and not watch.called:
            watch.called, watch.answers = True, {}
            self._tell(["call", list(key)], self._others(watch.ranks))

    def _run(self) -> None:
        """Look until told to stop."""
        while not self._ended.wait(self._pause_s):
            self.look(time.monotonic())

    def _take(self, rank: int, message: list[Any]) -> None:
        """Act on what another rank's thread says."""
        if message[0] == "call":
            self._tell(["here", message[1], *self._where(tuple(message[1]))], [rank])
        elif message[0] == "here":
            if (watch := self._watches.get(tuple(message[1]))) is not None:
                watch.answers[rank] = _Answer(*message[2:])
        elif message[0] == "told":
            self.heard(rank, message[1])
        else:
            self._end(str(message[1]))

    def _where(self, key: tuple[int, ...]) -> _Answer:
        """Return where this rank is, for a rank of the group that calls."""
        own = self._watches.get(key)
        others = [watch.place for watch in list(self._watches.values()) if watch is not own]
        elsewhere = any(place.what and place.prompt for place in others)
        return _Answer(0, "", elsewhere) if own is None else _Answer(own.place.turn, own.place.what, elsewhere)

    def _judge(self, watch: _Watch, now: float) -> None:
        """End the job where ranks are missing, else begin to wait anew."""
        turn, what = watch.seen
        missing = [rank for rank in self._others(watch.ranks) if rank not in watch.answers]
        silent = bool(missing)
        if not silent and watch.place.prompt:
            behind = {r: a for r, a in watch.answers.items() if (a.turn, a.what) < (turn, what) and not a.elsewhere}
            missing = sorted(rank for rank, answer in behind.items() if not answer.what) or sorted(behind)
        if not watch.called or not missing:  # a roll call needs its time
            watch.begin(now)
            return
        text = self._words(missing, what, silent)
        self._tell(["lost", text], self._others(range(self._post.size), missing if silent else []))
        self._end(text)

    def _others(self, ranks: Sequence[int], but: Sequence[int] = ()) -> list[int]:
        """Return ranks without this one and some."""
        return [rank for rank in ranks if rank != self._post.rank and rank not in but]

    def _words(self, missing: list[int], what: str, silent: bool) -> str:
        """Return what is to be said of ranks that are missing; silent: whether they did not answer either."""
        names = [f"rank {rank} (host {self._hosts[rank]})" for rank in missing]
        have = "has" if len(names) == 1 else "have"
        remedy = (
            "look whether the process is stopped, or its host or network is down"
            if silent
            else "its process answers, so it computes or hangs; raise exchange.timeout_s where that may take longer"
        )
        return f"{', '.join(names)} {have} not come to {what} for {self._limit_s:g} s: {remedy}"

    def _tell(self, message: list[Any], ranks: list[int]) -> None:
        """Send a message to some ranks."""
        for rank in ranks:
            self._post.send(rank, json.dumps(message).encode())

    def _end(self, text: str) -> None:
        """Call `lost`, once."""
        if not self._over:
            self._over = True
            self._lost(text)
