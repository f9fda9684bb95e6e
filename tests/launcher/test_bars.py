"""Progress of pulls, pushes and creates: bars that a terminal shows in place, plain lines elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ollampi.launcher.bars import Bars

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


class Shown:
    """Bars with a clock that is set; what they wrote, and what a terminal shows of it."""

    def __init__(self, moving: bool, columns: int = 80, lines: int = 24) -> None:
        self.text, self.now = "", 0.0
        self.bars = Bars(self._write, moving, lambda: (columns, lines), lambda: self.now)

    def _write(self, text: str) -> None:
        self.text += text

    def say(self, status: str, **more: Any) -> None:
        self.bars({"status": status, **more})
        self.now += 1

    def screen(self) -> list[str]:
        lines: list[str] = []
        for up, line in re.findall(r"(?:\x1b\[(\d+)A\r\x1b\[J)?([^\x1b\n]*)\n", self.text):
            if up:
                del lines[len(lines) - int(up) :]
            lines.append(line)
        return lines


def test_plain_lines_come_with_a_new_status_and_every_tenth() -> None:
    shown = Shown(False)
    shown.say("pulling manifest")
    shown.say("pulling manifest")
    for done in range(0, 1001, 10):
        shown.say("pulling aaaaaaaaaaaa", digest=A, total=1000, completed=done)
    shown.say("success")
    lines = shown.text.splitlines()
    assert lines[0] == "pulling manifest"
    assert lines[1] == "pulling aaaaaaaaaaaa: 0 % of 1 KB"
    assert lines[2] == "pulling aaaaaaaaaaaa: 10 % of 1 KB (10 B/s, 90 s left)"
    assert lines[11] == "pulling aaaaaaaaaaaa: 100 % of 1 KB (10 B/s)"
    assert lines[12:] == ["success"]
    assert "\x1b" not in shown.text


def test_plain_lines_leave_out_tenths_that_were_passed_together() -> None:
    shown = Shown(False)
    shown.say("pulling a", digest=A, total=100)  # `completed` is left out while it is 0
    shown.say("pulling b", digest=B, total=100, completed=100)
    shown.say("pulling a", digest=A, total=100, completed=45)
    shown.say("pulling a", digest=A, total=100, completed=100)
    assert [line.partition(" (")[0] for line in shown.text.splitlines()] == [
        "pulling a: 0 % of 100 B",
        "pulling b: 100 % of 100 B",
        "pulling a: 45 % of 100 B",
        "pulling a: 100 % of 100 B",
    ]


def test_a_terminal_shows_one_line_for_each_layer() -> None:
    shown = Shown(True)
    shown.say("pulling manifest")
    for done in (0, 25, 50):
        shown.say("pulling aaaaaaaaaaaa", digest=A, total=100, completed=done)
        shown.say("pulling bbbbbbbbbbbb", digest=B, total=10, completed=done // 10)
    assert shown.screen() == [
        "pulling manifest",
        f"pulling aaaaaaaaaaaa:  50% [{'#' * 13}{'.' * 13}] 50 B/100 B  12 B/s  4 s",
        f"pulling bbbbbbbbbbbb:  50% [{'#' * 14}{'.' * 15}] 5 B/10 B  1 B/s  4 s",
    ]
    shown.say("pulling aaaaaaaaaaaa", digest=A, total=100, completed=100)
    shown.say("success")
    shown.bars.close()
    assert shown.screen()[0] == "pulling manifest"
    assert "100% [" in shown.screen()[1]
    assert shown.screen()[3] == "success"


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    shown = Shown(True, columns)
    shown.say(f"using existing layer {A}")
    for done in (0, 10**8, 5 * 10**9, 10**10):
        shown.say(f"copying file {A}", digest=A, total=10**10, completed=done)
    shown.bars.close()
    assert max(map(len, shown.screen())) < columns


def test_long_digests_are_cut_on_a_terminal_only() -> None:
    for moving, told in ((True, f"using existing layer sha256:{'a' * 12}"), (False, f"using existing layer {A}")):
        shown = Shown(moving)
        shown.say(f"using existing layer {A}")
        assert shown.text == f"{told}\n"


def test_more_layers_than_lines_do_not_scroll_the_picture_away() -> None:
    shown = Shown(True, lines=5)
    for number in range(12):
        shown.say(f"pulling {number}", digest=f"sha256:{number}", total=10, completed=5)
    ups = [int(up) for up in re.findall(r"\x1b\[(\d+)A", shown.text)]
    assert max(ups) == 4
    shown.bars.close()
    assert [line.partition(":")[0] for line in shown.screen()[-12:]] == [f"pulling {number}" for number in range(12)]


def test_pictures_do_not_follow_each_other_faster_than_one_can_look() -> None:
    shown = Shown(True)
    for done in range(1000):
        shown.bars({"status": "pulling a", "digest": A, "total": 1000, "completed": done})
        shown.now += 0.001
    assert shown.text.count("\n") <= 11


def test_what_a_server_says_cannot_steer_the_terminal() -> None:
    for moving in (True, False):
        shown = Shown(moving)
        shown.say("pulling\x1b[2J\r\nmanifest\x9b")
        assert shown.text == "pulling\N{REPLACEMENT CHARACTER}[2J manifest\N{REPLACEMENT CHARACTER}\n"


@pytest.mark.parametrize("piece", [{}, {"status": ""}, {"status": None}, {"total": "x", "digest": A}])
def test_odd_objects_are_passed_over(piece: dict[str, Any]) -> None:
    shown = Shown(False)
    shown.bars(piece)
    assert shown.text == ""


def test_the_last_picture_stays_when_the_connection_is_lost() -> None:
    shown = Shown(True)

    def pieces() -> Any:
        yield {"status": "pulling a", "digest": A, "total": 100, "completed": 10}
        yield {"status": "pulling a", "digest": A, "total": 100, "completed": 20}
        raise ConnectionError

    with pytest.raises(ConnectionError):
        shown.bars.follow(pieces())
    assert shown.screen()[0].startswith("pulling a:  20% [")
