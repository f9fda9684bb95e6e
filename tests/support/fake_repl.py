"""Lines and a server for the conversation of `run`."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from ollampi.launcher.client import ApiError, Client, Json
from ollampi.launcher.repl import Repl, Settings

FACTS = {
    "template": "{{ .Prompt }}",
    "modelfile": "FROM tiny",
    "parameters": "temperature                    0.5",
    "system": "Be brief.",
    "details": {"family": "llama"},
    "capabilities": ["completion", "thinking"],
}


class ListLines:
    """Give lines from a list; an exception in it is raised."""

    def __init__(self, lines: Iterable[str | type[BaseException]]) -> None:
        self.left = list(lines)
        self.prompts: list[str] = []
        self.remembered: list[bool] = []

    def read(self, prompt: str) -> str:
        """Return the next line."""
        self.prompts.append(prompt)
        if not self.left:
            raise EOFError
        line = self.left.pop(0)
        if isinstance(line, str):
            return line
        raise line

    def remember(self, wanted: bool) -> None:
        """Note the wish."""
        self.remembered.append(wanted)


class FakeClient(Client):
    """Answer every chat with the next of `answers`: pieces of text, or an exception to raise among them."""

    def __init__(self, *answers: list[Any]) -> None:
        super().__init__("http://fake")
        self.answers = list(answers)
        self.sent: list[tuple[str, Json]] = []
        self.closed = 0

    def post(self, path: str, body: Any) -> Json:
        """Return facts for show, an empty object for a load; the model `nope` does not exist."""
        self.sent.append((path, body))
        if body["model"] == "nope":
            raise ApiError(404, "model 'nope' not found")
        return FACTS if path == "/api/show" else {"done": True}

    def stream(self, path: str, body: Any) -> Generator[Json, None, None]:
        """Yield the pieces of the next answer."""
        self.sent.append((path, body))
        try:
            for piece in self.answers.pop(0):
                if not isinstance(piece, str | dict):
                    raise piece
                yield {"message": piece if isinstance(piece, dict) else {"content": piece}}
            yield {"message": {"content": ""}, "done": True, "eval_count": 2}
        finally:
            self.closed += 1

    def chats(self) -> list[Json]:
        """Return the bodies sent to /api/chat."""
        return [body for path, body in self.sent if path == "/api/chat"]


def talk(client: FakeClient, *lines: str | type[BaseException], settings: Settings | None = None) -> str:
    """Return all that a conversation of these lines writes."""
    written: list[str] = []
    Repl(client, settings or Settings("tiny"), ListLines(lines), written.append).run()
    return "".join(written)


def message(role: str, content: str) -> Json:
    return {"role": role, "content": content}
