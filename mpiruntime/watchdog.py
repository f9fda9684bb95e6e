"""Find out which rank keeps the others waiting: each rank has a thread that looks how long its work waits.

    a rank waits in a collective for 2/3 of the limit   its thread calls the others' threads
    every thread answers                                with the collective in which its rank waits, or none
    the rank still waits when the limit is over         those that did not answer are missing; in a step, where all
                                                        answered, those that have not come to the collective
    it tells the others                                 and on each of them `lost` is called, which ends the job

A rank that computes, reads files or waits itself has a thread that answers; one that is stopped or cut off has not.
What the threads talk through carries the ranks' heartbeats too (mpiruntime.heartbeat).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_CALL_AT = 2 / 3
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
    """Where the work of a rank is; written by its main thread alone.

    turn: collectives begun so far, on all ranks the same ones; what: the one it waits in now, "" for none; prompt:
    whether ranks must come to it within the limit, else they may be busy with something long.
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
        self.place = Place()
        self.beside: Callable[[float], None] = lambda now: None
        self.heard: Callable[[int, Any], None] = lambda rank, told: None
        self._pause_s = min(limit_s / _LOOKS, longest_s)
        self._post = post
        self._hosts = hosts
        self._limit_s = limit_s
        self._lost = lost
        self._over = False
        self._seen: tuple[int, str] = (0, "")
        self._since = self._looked = time.monotonic()
        self._called = False
        self._answers: dict[int, tuple[int, str]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

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
        if paused > 0:  # this rank stood still itself, maybe with all others: that time does not count
            self._since += paused
        self._looked = now
        self.beside(now)
        place = (self.place.turn, self.place.what)
        if place != self._seen or not place[1]:
            self._seen, self._since, self._called = place, now, False
        elif now - self._since >= self._limit_s:
            self._judge(now)
        elif now - self._since >= _CALL_AT * self._limit_s and not self._called:
            self._called, self._answers = True, {}
            self._tell_others(["call"], [])

    def _run(self) -> None:
        """Look until told to stop."""
        while not self._ended.wait(self._pause_s):
            self.look(time.monotonic())

    def _take(self, rank: int, message: list[object]) -> None:
        """Act on what another rank's thread says."""
        if message[0] == "call":
            self._post.send(rank, json.dumps(["here", self.place.turn, self.place.what]).encode())
        elif message[0] == "here":
            self._answers[rank] = (int(str(message[1])), str(message[2]))
        elif message[0] == "told":
            self.heard(rank, message[1])
        else:
            self._end(str(message[1]))

    def _judge(self, now: float) -> None:
        """End the job where ranks are missing, else begin to wait anew."""
        turn, what = self._seen
        others = [rank for rank in range(self._post.size) if rank != self._post.rank]
        missing = [rank for rank in others if rank not in self._answers]
        silent = bool(missing)
        if not silent and self.place.prompt:
            behind = {rank: where for rank, where in self._answers.items() if where < (turn, what)}
            missing = sorted(rank for rank, where in behind.items() if not where[1]) or sorted(behind)
        if not self._called or not missing:  # a roll call needs its time
            self._since, self._called = now, False
            return
        text = self._words(missing, what, silent)
        self._tell_others(["lost", text], missing if silent else [])
        self._end(text)

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

    def _tell_others(self, message: list[str], but: list[int]) -> None:
        """Send a message to all other ranks but some."""
        for rank in range(self._post.size):
            if rank != self._post.rank and rank not in but:
                self._post.send(rank, json.dumps(message).encode())

    def _end(self, text: str) -> None:
        """Call `lost`, once."""
        if not self._over:
            self._over = True
            self._lost(text)
