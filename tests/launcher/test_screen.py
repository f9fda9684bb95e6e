"""Test what an answer looks like on the screen."""

from collections.abc import Generator

import pytest

from ollampi.launcher.client import Json
from ollampi.launcher.screen import Screen, show_answer


@pytest.mark.parametrize(
    ("width", "pieces", "text"),
    [
        (0, ["a long line ", "that stays"], "a long line that stays\n"),
        (10, ["one two th", "ree four"], "one two \nthree four\n"),
        (10, ["one\ntwo three"], "one\ntwo three\n"),
        (5, ["abcdefghijkl"], "abcde\nfghij\nkl\n"),
        (4, ["ab cd  ef"], "ab \ncd  \nef\n"),
        (6, ["日本語日本語"], "日本語\n日本語\n"),
        (10, ["0123456789 x"], "0123456789\nx\n"),
    ],
)
def test_screen_breaks_lines_between_words(width: int, pieces: list[str], text: str) -> None:
    written: list[str] = []
    screen = Screen(written.append, width)
    for piece in pieces:
        screen.content(piece)
    screen.end()
    assert "".join(written) == text
    if width:
        assert all(len(line.rstrip()) <= width for line in text.splitlines())


def test_show_answer_of_generate_collects_the_text() -> None:
    def pieces() -> Generator[Json, None, None]:
        yield {"thinking": "hm"}
        yield {"response": "ye"}
        yield {"response": "s", "done": True}

    written: list[str] = []
    answer = show_answer(pieces(), Screen(written.append))
    assert (answer.thinking, answer.content, answer.interrupted) == ("hm", "yes", False)
    assert answer.final == {"response": "s", "done": True}
    assert "".join(written) == "Thinking...\nhm\n...done thinking.\n\nyes\n"
