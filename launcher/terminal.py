"""Read lines from a person: plainly, or with editing and a history file."""

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.history import History


class PlainLines:
    """Read lines with input(), where there is no terminal to edit them on."""

    def read(self, prompt: str) -> str:
        """Return the next line."""
        return input(prompt)

    def remember(self, wanted: bool) -> None:
        """Do nothing: there is no history."""


class FileHistory(History):
    """Keep the history as Ollama does: a file of plain lines, the newest last, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.wanted = True

    def load_history_strings(self) -> Iterable[str]:
        """Return the lines, newest first."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").splitlines()[:-1001:-1]
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Append one line, unless the history is off or the file cannot be written."""
        if not self.wanted:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
                file.write(" ".join(string.splitlines()) + "\n")
        except OSError:
            self.wanted = False  # a home that cannot be written must not end a conversation


class TerminalLines:
    """Read lines with editing and a history file."""

    def __init__(self, path: Path) -> None:
        self._history = FileHistory(path)
        self._session: PromptSession[str] = PromptSession(history=self._history)

    def read(self, prompt: str) -> str:
        """Return the next line."""
        return self._session.prompt(prompt)

    def remember(self, wanted: bool) -> None:
        """Keep the lines that follow in the file, or not."""
        self._history.wanted = wanted
