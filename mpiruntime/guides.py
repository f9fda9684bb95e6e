"""Know which tokens the grammars of requests allow next, as the grammar process says; rank 0, main thread."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from ollampi.mpiruntime.grammar_link import Link
from ollampi.mpiruntime.request import GenerateRequest
from ollampi.mpiruntime.tokenizer_file import tokenizer_file
from ollampi.mpiruntime.wire import Closed, Message

_MOST_BLAMED = 2  # deaths of the process while it worked on a grammar, the last of which ends the answer
_MOST_DEATHS = 5  # of the process while it had a grammar, whoever is to blame
_ENDED_TEXT = "the process that follows grammars ended {} times{}; see the server's messages"


class Guide:
    """What the grammar of one sequence allows.

    opened: the grammar was accepted; ready: it is known what may come next; masks: for the next token and behind the
    tokens of a draft that fit, each a bit for each token, the lowest first, or None where all are allowed; forced: the
    tokens that must come next, as far as that is known; plain: no drafts can be judged; complete: nothing may come any
    more; error: why the request must end, with its code.
    """

    def __init__(self, guides: Guides, opening: Message) -> None:
        self._guides = guides
        self.opening = opening
        self.deaths = self.blamed = 0
        self.opened = False
        self.masks: list[bytes | None] = []
        self.forced: list[int] = []
        self._unanswered = 1
        self.plain = False
        self.complete = False
        self.error: tuple[str, str] | None = None

    @property
    def ready(self) -> bool:
        """Return whether the next token can be chosen."""
        return bool(self.masks) and not self._unanswered and not self.complete

    @property
    def over(self) -> bool:
        """Return whether the request must end, well or not."""
        return self.complete or self.error is not None

    def advance(self, tokens: list[int]) -> None:
        """Take the tokens that were chosen; the mask behind them follows."""
        self.opening["tokens"] += tokens
        self.forced = self.forced[len(tokens) :] if self.forced[: len(tokens)] == tokens else []
        self._ask(tokens, [])

    def foresee(self, draft: list[int]) -> None:
        """Have the masks behind a draft made too; nothing is taken.

        Nothing is asked of a process that has not opened the grammar: it would not answer.
        """
        if self.masks:
            self._ask([], draft)

    def _ask(self, tokens: list[int], draft: list[int]) -> None:
        self._unanswered += 1
        self._guides.outbox.append((self.opening["id"], tokens, draft))

    def take(self, reply: Message) -> None:
        """Note what the process said; only its last word counts."""
        self._unanswered -= 1
        if "again" in reply:
            self.plain = True
            self.masks, self._unanswered = [], 1
            self._guides.send(self.opening)
            return
        if "error" in reply:
            self.error = (reply["code"], reply["error"])
            return
        self.opened = True
        self.masks, self.forced, self.complete = reply["masks"], reply["forced"], reply["end"]

    def begin_again(self, blamed: bool) -> None:
        """Forget what was asked of a process that has died; end where that happened often, the more so when blamed."""
        self.masks, self._unanswered = [], 1
        self.deaths += 1
        self.blamed += blamed
        if self.blamed >= _MOST_BLAMED:
            self.error = ("internal", _ENDED_TEXT.format(self.blamed, " at work on this grammar"))
        elif self.deaths >= _MOST_DEATHS:
            self.error = ("internal", _ENDED_TEXT.format(self.deaths, ""))

    def close(self) -> None:
        """Forget the grammar."""
        self._guides.drop(self)


class Guides:
    """The guides of all sequences; the grammar process starts with the first one."""

    def __init__(self) -> None:
        self._numbers = count()
        self._guides: dict[int, Guide] = {}
        self._link: Link | None = None
        self.outbox: list[tuple[int, list[int], list[int]]] = []

    def __bool__(self) -> bool:
        return bool(self._guides)

    def open(self, request: GenerateRequest, vocab_size: int) -> Guide | None:
        """Return the guide of a request, None where it has no grammar."""
        grammar = request.grammar
        if grammar is None:
            return None
        tokenizer = tokenizer_file(Path(request.model.path))
        opening: Message = {
            "op": "open",
            "id": next(self._numbers),
            "kind": grammar.kind,
            "text": grammar.text,
            "reasoning": grammar.reasoning,
            "tokenizer": str(tokenizer),
            "changed_ns": tokenizer.stat().st_mtime_ns if tokenizer.is_file() else 0,
            "vocab_size": vocab_size,
            "stops": request.stop_tokens,
            "tokens": [],
        }
        guide = self._guides[opening["id"]] = Guide(self, opening)
        self.send(opening)
        return guide

    def flush(self) -> None:
        """Send the tokens that guides took."""
        if self.outbox:
            items, self.outbox = self.outbox, []
            self.send({"op": "advance", "items": items})

    def collect(self) -> None:
        """Take the replies that are there."""
        if self._link is None or not self._guides:
            return
        try:
            for message in self._link.receive():
                for reply in message["replies"]:
                    self._take(reply)
        except Closed:
            self._start_again()

    def wait(self, timeout_s: float) -> None:
        """Return once there is a reply to collect, or the time is over."""
        if self._link is not None:
            self._link.wait(timeout_s)

    def wait_for(self, guides: Iterable[Guide], timeout_s: float) -> None:
        """Return once all of the guides are ready or over, or the time is over."""
        end = time.monotonic() + timeout_s
        self.collect()
        awaited = list(guides)
        while any(not guide.ready and not guide.over for guide in awaited):
            left_s = end - time.monotonic()
            if left_s <= 0:
                return
            self.wait(left_s)
            self.collect()

    def drop(self, guide: Guide) -> None:
        """Forget a guide; one that is forgotten already is ignored."""
        number = guide.opening["id"]
        if self._guides.pop(number, None) is not None:
            self.send({"op": "close", "id": number})

    def close(self) -> None:
        """End the grammar process."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def send(self, message: Message) -> None:
        """Send a message to the process, which starts where it does not run."""
        try:
            self._link = self._link or Link()
        except OSError as e:
            for guide in self._guides.values():
                guide.error = ("busy", f"the process that follows grammars cannot be started: {e.strerror}; try again")
            return
        self._link.send(message)

    def _take(self, reply: Message) -> None:
        """Tell a guide what the process said."""
        guide = self._guides.get(reply["id"])
        if guide is not None:
            guide.take(reply)

    def _start_again(self) -> None:
        """Open every grammar anew in another process, as far as its answer has come; some end with an error.

        Those that the dead one was working on come last, so that the others are there already if it dies again.
        """
        blamed = self._link.at_work_on() if self._link is not None else set()
        self.close()
        self.outbox = []
        for number, guide in self._guides.items():
            guide.begin_again(number in blamed)
        for guide in sorted(self._guides.values(), key=lambda guide: guide.blamed):
            if not guide.over:
                self.send(guide.opening)
