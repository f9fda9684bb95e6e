"""Test how lines are read and remembered."""

from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from ollampi.launcher.terminal import FileHistory, PlainLines, TerminalLines


def test_history_is_plain_lines_newest_first(tmp_path: Path) -> None:
    path = tmp_path / "home" / "history"
    history = FileHistory(path)
    for line in ("one", "two\nlines", "three"):
        history.store_string(line)
    assert path.read_text() == "one\ntwo lines\nthree\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(FileHistory(path).load_history_strings()) == ["three", "two lines", "one"]


def test_history_can_be_switched_off(tmp_path: Path) -> None:
    history = FileHistory(tmp_path / "history")
    history.wanted = False
    history.store_string("secret")
    assert not (tmp_path / "history").exists()
    assert list(history.load_history_strings()) == []


def test_a_history_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = FileHistory(tmp_path / "file" / "history")
    history.store_string("one")
    assert history.wanted is False


def test_plain_lines_read_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: f"{prompt}typed")
    lines = PlainLines()
    lines.remember(False)
    assert lines.read(">>> ") == ">>> typed"


def test_terminal_lines_edit_and_remember(tmp_path: Path) -> None:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        lines = TerminalLines(tmp_path / "history")
        keys.send_text("hellp\x7fo\r")
        assert lines.read(">>> ") == "hello"
        lines.remember(False)
        keys.send_text("secret\r")
        assert lines.read(">>> ") == "secret"
    assert (tmp_path / "history").read_text() == "hello\n"
