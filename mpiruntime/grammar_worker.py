"""Say which tokens grammars allow, in a process beside rank 0: `python -m ollampi.mpiruntime.grammar_worker`.

Its arguments are the parent's process id and the descriptor of the marks. Standard input is a socket. The coordinator
sends `open`, `advance` and `close`, one map each, and gets frames of replies, in order for each grammar. A grammar is
tried in a process of its own first (grammar_check), one at a time, and is then compiled in a thread, so that those
which run already do not wait for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any

from ollampi.mpiruntime import wire
from ollampi.mpiruntime.errors import RequestError
from ollampi.mpiruntime.grammar_check import GROWTH_BYTES, Check, resident_bytes
from ollampi.mpiruntime.grammar_marks import FOLLOWED, OPENED, Marks
from ollampi.mpiruntime.grammar_matcher import Matcher, Vocabulary, compile_grammar, read_vocabulary, refusal
from ollampi.mpiruntime.lifetime import die_with
from ollampi.mpiruntime.reasoning import Reasoning

TOTAL_BYTES = 1 << 30  # of all grammars together, beyond which no new one begins
HANG_S = 20.0  # CPU time without a pause, after which the process ends: a fault of llguidance
_FLUSH_S = 0.005  # masks that are ready do not wait longer for slow ones
_KEPT_VOCABULARIES = 4
_KNOWN_GRAMMARS = 1024
_TRIM_BYTES = 16 << 20
_PRIORITY = 10

_vocabulary = lru_cache(_KEPT_VOCABULARIES)(read_vocabulary)
Message = dict[str, Any]


def main() -> None:
    """Serve the coordinator until it is gone."""
    die_with(int(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(16 << 20)  # whatever passes the check on the main thread's stack fits
    with socket.socket(fileno=0) as connection:
        try:
            _Worker(connection, Marks(int(sys.argv[2]))).serve()
        except wire.Closed:
            return


class _Compiling:
    """A thread that compiles one grammar; `fileno` becomes readable at the end."""

    def __init__(self, vocabulary: Vocabulary, message: Message) -> None:
        self._vocabulary, self._message = vocabulary, message
        self._done, self._signal = os.pipe()
        self._outcome: Matcher | RequestError = refusal("it cannot be compiled")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._done

    def end(self) -> Matcher:
        """Return the matcher; raise RequestError where the grammar is refused after all."""
        self._thread.join()
        os.close(self._done)
        if isinstance(self._outcome, RequestError):
            raise self._outcome
        return self._outcome

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)  # of this thread alone, on Linux
        before = resident_bytes()
        try:
            compiled = compile_grammar(self._vocabulary, self._message["kind"], self._message["text"])
            reasoning = _reasoning(self._vocabulary, self._message["reasoning"])
            self._outcome = Matcher(self._vocabulary, compiled, reasoning, resident_bytes() - before)
        except RequestError as e:
            self._outcome = e
        finally:
            os.close(self._signal)


def next_of(queue: Iterable[Message], now: float) -> Message:
    """Return which grammar is opened next: one that is small for how long it waits, so that huge ones hold none up."""
    return min(queue, key=lambda message: len(message["text"]) / (1 + now - message["since"]))


class _Worker:
    """All grammars of a coordinator."""

    def __init__(self, connection: socket.socket, marks: Marks) -> None:
        self._connection = connection
        self._marks = marks
        self._matchers: dict[int, Matcher] = {}
        self._queue: deque[Message] = deque()  # to be opened; the first one is being checked or compiled
        self._work: Check | _Compiling | None = None
        self._checked: dict[bytes, str] = {}  # by digest: why a grammar is refused, empty where it is not
        self._replies: list[Message] = []
        self._base_bytes = resident_bytes()
        self._libc = ctypes.CDLL(None)

    def serve(self) -> None:
        """Act on messages and finished work until the connection closes; raise wire.Closed then."""
        while True:
            timeout_s = self._work.left_s if isinstance(self._work, Check) else None
            waiting: list[Any] = [self._connection, *([self._work] if self._work else [])]
            ready = select.select(waiting, [], [], timeout_s)[0]
            signal.setitimer(signal.ITIMER_PROF, HANG_S)
            if self._work and (self._work in ready or not ready):
                self._go_on()
            if self._connection in ready:
                self._act(wire.receive(self._connection))
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._flush()

    def _act(self, message: Message) -> None:
        """Act on one message."""
        if message["op"] == "open":
            message["since"] = time.monotonic()
            self._queue.append(message)
            self._open_next()
        elif message["op"] == "advance":
            self._advance(message["items"])
        else:
            self._close(message["id"])

    def _advance(self, items: list[tuple[int, list[int], list[int]]]) -> None:
        """Take tokens and answer with masks, those that were quick last time first."""
        began = time.monotonic()
        known = [item for item in items if item[0] in self._matchers]
        for number, tokens, draft in sorted(known, key=lambda item: self._matchers[item[0]].last_s):
            self._marks.mark(FOLLOWED, number)
            self._answer(number, tokens, draft)
            self._marks.mark(FOLLOWED, None)
            if time.monotonic() - began > _FLUSH_S:
                self._flush()

    def _answer(self, number: int, tokens: list[int], draft: list[int]) -> None:
        """Reply with the masks of one grammar, its end or its failure."""
        matcher = self._matchers[number]
        before = resident_bytes()
        try:
            masks, forced = matcher.advance(tokens, draft), matcher.forced()
            matcher.grown_bytes += resident_bytes() - before
            if matcher.grown_bytes > GROWTH_BYTES:
                raise refusal(f"it needs more than {GROWTH_BYTES >> 20} MB; make it smaller")
        except RequestError as e:
            again = {"again": True}  # without drafts, which may be to blame
            self._replies.append({"id": number, **(again if matcher.judged else {"code": "request", "error": str(e)})})
            self._close(number)
            return
        self._replies.append({"id": number, "end": matcher.complete(masks[0]), "masks": masks, "forced": forced})

    def _close(self, number: int) -> None:
        """Forget a grammar, whatever its state."""
        if self._queue and self._queue[0]["id"] == number:
            self._queue[0]["closed"] = True  # its work is under way
            if isinstance(self._work, Check):
                self._work.cancel()
                self._work = None
                self._queue.popleft()
                self._open_next()
            return
        self._queue = deque(message for message in self._queue if message["id"] != number)
        matcher = self._matchers.pop(number, None)
        if matcher is not None and matcher.grown_bytes > _TRIM_BYTES:
            del matcher
            self._libc.malloc_trim(0)

    # ---- opening, one at a time ----

    def _open_next(self) -> None:
        """Begin with the first grammar of the queue that is not refused at once."""
        while self._queue and self._work is None:
            message = next_of(self._queue, time.monotonic())
            self._queue.remove(message)
            self._queue.appendleft(message)
            self._marks.mark(OPENED, message["id"])
            try:
                vocabulary = _vocabulary_of(message)
            except RequestError as e:
                self._refuse("request", str(e))
                continue
            if resident_bytes() - self._base_bytes > TOTAL_BYTES:
                self._refuse("busy", "other requests' grammars need all the memory that is for grammars; try again")
            elif (reason := self._checked.get(_digest(message))) is None:
                self._work = Check(partial(_try, vocabulary, message))
            elif reason:
                self._refuse("request", reason)
            else:
                self._work = _Compiling(vocabulary, message)
        if not self._queue:
            self._marks.mark(OPENED, None)

    def _go_on(self) -> None:
        """Go on with the first grammar of the queue: its check or its compilation is over."""
        message, work = self._queue[0], self._work
        self._work = None
        if isinstance(work, Check):
            reason = work.end()
            if not work.starved:
                self._remember(_digest(message), reason)
            if reason:
                self._refuse("request", reason)
            else:
                self._work = _Compiling(_vocabulary_of(message), message)
        elif work is not None:
            try:
                self._matchers[message["id"]] = work.end()
            except RequestError as e:
                self._refuse("request", str(e))
            else:
                self._queue.popleft()
                if message.get("closed"):
                    self._close(message["id"])
                else:
                    self._answer(message["id"], message["tokens"], [])
        self._open_next()

    def _refuse(self, code: str, reason: str) -> None:
        """Answer the first of the queue that it cannot be opened."""
        self._replies.append({"id": self._queue.popleft()["id"], "code": code, "error": reason})

    def _remember(self, digest: bytes, reason: str) -> None:
        """Note how the check of a grammar ended."""
        self._checked[digest] = reason
        if len(self._checked) > _KNOWN_GRAMMARS:
            del self._checked[next(iter(self._checked))]

    def _flush(self) -> None:
        """Send the replies that are there."""
        if self._replies:
            replies, self._replies = self._replies, []
            wire.send(self._connection, {"replies": replies})


def _vocabulary_of(message: Message) -> Vocabulary:
    """Return the vocabulary that a grammar is for; raise RequestError where it cannot be had."""
    return _vocabulary(message["tokenizer"], message["changed_ns"], message["vocab_size"], tuple(message["stops"]))


def _digest(message: Message) -> bytes:
    """Return what tells one grammar from another, for one vocabulary."""
    parts = [message[name] for name in ("kind", "text", "tokenizer", "changed_ns", "vocab_size", "stops")]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def _try(vocabulary: Vocabulary, message: Message) -> None:
    """Compile a grammar and take one step; raise RequestError where it is refused."""
    Matcher(vocabulary, compile_grammar(vocabulary, message["kind"], message["text"])).advance([], [])


def _reasoning(vocabulary: Vocabulary, tags: tuple[str, str, bool] | None) -> Reasoning | None:
    """Return what may come before the answer: the opening and the closing tag, and whether the prompt opened it."""
    if tags is None:
        return None
    opening, closing, inside = tags
    return Reasoning(vocabulary.tokens.tokenize_str(opening, parse_special=True), closing.encode(), inside)


if __name__ == "__main__":
    main()
