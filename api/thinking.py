"""Split an answer into the model's reasoning, between its think tags, and the rest."""

from __future__ import annotations

from ollampi.api.detokenizer import StopFilter

OPEN, CLOSE = "<think>", "</think>"


class ThinkSplitter:
    """Split text piece by piece; `inside` says whether the prompt already opened the reasoning."""

    def __init__(self, inside: bool) -> None:
        self._state = "thinking" if inside else "start"
        self._begun = ""
        self._close = StopFilter([CLOSE])
        self._after = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Return (thinking, content) that `text` adds."""
        if self._state == "start":
            text = self._start(text)
        if self._state != "thinking":
            return "", self._content(text)
        return self._thinking(text)

    def flush(self) -> tuple[str, str]:
        """Return (thinking, content) that still waited; the answer has ended."""
        begun, self._begun = self._begun, ""
        return self._close.flush(), begun

    def _start(self, text: str) -> str:
        """Return the text to go on with once it is known whether the answer opens with the tag."""
        self._begun += text
        stripped = self._begun.lstrip()
        if OPEN.startswith(stripped):
            return ""
        text, self._begun = self._begun, ""
        self._state = "content"
        if stripped.startswith(OPEN):
            self._state = "thinking"
            return stripped[len(OPEN) :].lstrip()
        return text

    def _thinking(self, text: str) -> tuple[str, str]:
        self._after += text
        thought = self._close.feed(text)
        if not self._close.stopped:
            self._after = self._after[-len(CLOSE) :]
            return thought, ""
        self._state = "blank"  # the blank lines between the tag and the answer belong to neither
        return thought, self._content(self._after.partition(CLOSE)[2])

    def _content(self, text: str) -> str:
        if self._state == "blank":
            text = text.lstrip()
            self._state = "content" if text else "blank"
        return text
