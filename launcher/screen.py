"""Write an answer on a screen as it comes."""

import unicodedata
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from ollampi.launcher.client import Json


def _columns(word: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in word)


class Screen:
    """Write an answer piece by piece, whole words within `width` columns (0: as it comes)."""

    def __init__(self, write: Callable[[str], Any], width: int = 0, hide_thinking: bool = False) -> None:
        self._write, self._width, self._hide = write, width, hide_thinking
        self._column, self._word, self._in_thought, self._trim = 0, "", False, False

    def thought(self, text: str) -> None:
        """Write a piece of the reasoning, unless it is hidden."""
        if text and not self._hide:
            self._put(text if self._in_thought else f"Thinking...\n{text}")
            self._in_thought = True

    def content(self, text: str) -> None:
        """Write a piece of the answer itself."""
        if text and self._in_thought:
            self._leave_thought()
        text = text.lstrip("\n") if self._trim else text  # models put blank lines between thought and answer
        if text:
            self._trim = False
            self._put(text)

    def end(self) -> None:
        """Write what is held back and end the line."""
        if self._in_thought:
            self._leave_thought()
        self._flush()
        self._write("\n")
        self._column = 0

    def _leave_thought(self) -> None:
        self._put("\n...done thinking.\n\n")
        self._in_thought, self._trim = False, True

    def _put(self, text: str) -> None:
        if not self._width:
            self._write(text)
            return
        for letter in text:
            if letter.isspace():
                self._flush()
                self._space(letter)
            else:
                self._word += letter
                if _columns(self._word) >= self._width:  # a word wider than the screen, or a script without blanks
                    self._flush()

    def _space(self, letter: str) -> None:
        if letter == "\n" or self._column < self._width:
            self._write(letter)
            self._column = 0 if letter == "\n" else self._column + 1

    def _flush(self) -> None:
        columns = _columns(self._word)
        if self._column and self._column + columns > self._width > 0:
            self._write("\n")
            self._column = 0
        if self._word:
            self._write(self._word)
        self._column, self._word = self._column + columns, ""


@dataclass
class Answer:
    """Hold what came of an answer; `interrupted` when Ctrl-C stopped it."""

    content: str = ""
    thinking: str = ""
    final: Json = field(default_factory=dict)
    interrupted: bool = False


def show_answer(pieces: Generator[Json, None, None], screen: Screen) -> Answer:
    """Write the pieces of /api/generate or /api/chat as they come and return the whole; Ctrl-C hangs up."""
    answer = Answer()
    try:
        for piece in pieces:
            message = piece.get("message") or {}
            thought = str(piece.get("thinking") or message.get("thinking") or "")
            content = str(piece.get("response") or message.get("content") or "")
            screen.thought(thought)
            screen.content(content)
            answer.thinking += thought
            answer.content += content
            answer.final = piece
    except KeyboardInterrupt:
        answer.interrupted = True
    finally:
        pieces.close()
        if answer.content or answer.thinking:
            screen.end()
    return answer
