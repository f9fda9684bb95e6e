"""Know which tokens the grammars of requests allow next, as the grammar process says; rank 0, main thread."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from ollampi.mpiruntime.grammar_link import Link
from ollampi.mpiruntime.request import GenerateRequest
from ollampi.mpiruntime.wire import Closed, Message

_MAX_STARTS = 2  # how often a grammar is opened: again where another one may have ended the process
_ENDED_TEXT = "the process that follows grammars ended twice; see the server's messages"


class Guide:
    """What the grammar of one sequence allows.

    opened: the grammar was accepted; ready: it is known what may come next; masks: for the next token and behind the
    tokens of a draft that fit, each a bit for each token, the lowest first, or None where all are allowed; complete:
    nothing may come any more; error: why the request must end, with its code.
    """

    def __init__(self, guides: Guides, opening: Message) -> None:
        self._guides = guides
        self.opening = opening
        self.starts = 1
        self.opened = False
        self.masks: list[bytes | None] = []
        self.complete = False
        self.error: tuple[str, str] | None = None

    @property
    def ready(self) -> bool:
        """Return whether the next token can be chosen."""
        return bool(self.masks) and not self.complete

    @property
    def over(self) -> bool:
        """Return whether the request must end, well or not."""
        return self.complete or self.error is not None

    def advance(self, tokens: list[int], draft: list[int] | None = None) -> None:
        """Take the tokens that were chosen; the masks follow, for a draft too, of which nothing is taken."""
        self.masks = []
        self.opening["tokens"] += tokens
        self._guides.outbox.append((self.opening["id"], tokens, draft or []))

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
        tokenizer = Path(request.model.path) / "tokenizer.json"
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
        self._send(opening)
        return guide

    def flush(self) -> None:
        """Send the tokens that guides took."""
        if self.outbox:
            items, self.outbox = self.outbox, []
            self._send({"op": "advance", "items": items})

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
            self._send({"op": "close", "id": number})

    def close(self) -> None:
        """End the grammar process."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _send(self, message: Message) -> None:
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
        if guide is None:
            return
        if "error" in reply:
            guide.error = (reply["code"], reply["error"])
            return
        guide.opened = True
        guide.masks, guide.complete = reply["masks"], reply["end"]

    def _start_again(self) -> None:
        """Open every grammar anew in another process, as far as its answer has come; some end with an error."""
        self.close()
        self.outbox = []
        for guide in self._guides.values():
            guide.masks = []
            guide.starts += 1
            if guide.starts > _MAX_STARTS:
                guide.error = ("internal", _ENDED_TEXT)
            elif not guide.over:
                self._send(guide.opening)
