"""Play the engine, the request and the client of one streamed answer, each step on its own."""

from __future__ import annotations

import queue
import threading

from ollampi.api.delivery import Delivery
from ollampi.api.engine_client import Done, Tokens
from ollampi.api.engine_events import tokens_of
from ollampi.api.generation import Answer, Outcome, Piece
from ollampi.api.mailbox import Mailbox
from ollampi.api.socket_engine import SocketStream
from support.servers import wait_until

USAGE = {"prompt_tokens": 3, "generated_tokens": 9}


class Engine:
    """The other side of a stream: what it says is put into the mailbox; a cancel makes it say that it is done."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.cancelled: list[str] = []
        self.stream: SocketStream[Tokens | Done] = SocketStream(tokens_of, self, 1, self.mailbox)

    def send(self, message: dict[str, object]) -> None:
        self.cancelled.append(str(message["reason"]))
        self.mailbox.put({"kind": "done", "reason": "cancel", "usage": USAGE})

    def forget(self, number: int) -> None:
        """Know nothing of requests."""


def text_line(piece: Piece | Outcome) -> str:
    """Return a line that says everything but the time."""
    if isinstance(piece, Piece):
        return repr((piece.text, piece.thinking)) + "\n"
    return repr((piece.last.text, piece.reason, piece.tokens, piece.usage)) + "\n"


class Waiter:
    """Takes the lines of an answer in a thread of its own, as a request does."""

    def __init__(self, engine: Engine, answer: Answer, pipe: object, line=text_line) -> None:
        self.lines: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
        self._delivery = Delivery(engine.stream, answer, line, pipe)
        self._mailbox = engine.mailbox
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for line in self._delivery:
                self.lines.put(line)
        except Exception as e:
            self.lines.put(e)

    def waits(self) -> None:
        """Return once nothing is left for the thread to do."""
        wait_until(lambda: self._mailbox._idle or not self.thread.is_alive(), 5, "the thread of the request")


class Recorder:
    """A pipe that keeps what it was given, and by which thread."""

    def __init__(self, full: bool = False) -> None:
        self.sent: list[tuple[str, str]] = []
        self.full = full

    def send_now(self, data: bytes) -> bool:
        self.sent.append((data.decode(), threading.current_thread().name))
        return not self.full

    def flush(self) -> None:
        self.sent.append(("flush", threading.current_thread().name))
        self.full = False


def token(number: int) -> dict[str, object]:
    return {"kind": "tokens", "tokens": [number]}
