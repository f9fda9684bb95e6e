"""Test the commands of the conversation: what they set, show and load."""

import pytest
from support.fake_repl import FACTS, FakeClient, ListLines, message, talk

from ollampi.launcher.repl import Repl, Settings


@pytest.mark.parametrize(
    ("lines", "system"),
    [
        (["/set system  Be  terse."], "Be  terse."),
        (['/set system """Be', 'terse."""'], "Be\nterse."),
        (["/set system one", "/set system two"], "two"),
    ],
)
def test_set_system_goes_in_front(lines: list[str], system: str) -> None:
    client = FakeClient(["a"])
    assert "Set system message." in talk(client, *lines, "hi")
    assert client.chats()[0]["messages"] == [message("system", system), message("user", "hi")]


def test_set_parameter_sends_options() -> None:
    client = FakeClient(["a"])
    lines = ["/set parameter temperature 0", "/set parameter num_predict 7", "/set parameter stop A B"]
    assert "Set parameter num_predict to 7." in talk(client, *lines, "hi")
    assert client.chats()[0]["options"] == {"temperature": 0.0, "num_predict": 7, "stop": ["A", "B"]}


def test_verbose_prints_timings_and_quiet_does_not() -> None:
    text = talk(FakeClient(["a"], ["b"]), "/set verbose", "one", "/set quiet", "two")
    assert text.count("eval count:           2 token(s)") == 1
    assert text.startswith("Set verbose.\na\n\neval count:")


@pytest.mark.parametrize(
    ("line", "think"), [("/set think", True), ("/set nothink", False), ("/set think high", "high")]
)
def test_set_think(line: str, think: bool | str) -> None:
    client = FakeClient(["a"])
    talk(client, line, "hi")
    assert client.chats()[0]["think"] == think


def test_a_model_that_cannot_think_is_not_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FACTS, "capabilities", ["completion"])
    client = FakeClient(["a"], ["b"])
    text = talk(client, "/set think", "/set think high", "one", "/set nothink", "two")
    assert text.startswith("Error: 'tiny' does not support thinking\n" * 2)
    assert [body.get("think") for body in client.chats()] == [None, False]


def test_how_hard_to_think_is_one_of_some_words() -> None:
    client = FakeClient(["a"])
    assert "Error: cannot think 'hard': choose one of low, medium, high, max\n" in talk(client, "/set think hard", "hi")
    assert "think" not in client.chats()[0]


def test_set_format() -> None:
    client = FakeClient(["{}"], ["a"])
    assert "Set format json." in talk(client, "/set format json", "one", "/set noformat", "two")
    assert [body.get("format") for body in client.chats()] == ["json", None]


def test_set_wordwrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    text = talk(FakeClient(["wide words wrap"], ["wide words wrap"]), "/set wordwrap", "a", "/set nowordwrap", "b")
    assert text.startswith("Set wordwrap.\nwide words\nwrap\n\nSet nowordwrap.\nwide words wrap\n")


def test_save_makes_a_model_of_the_conversation() -> None:
    client = FakeClient(["fine"])
    lines = ["/set system Be brief.", "/set parameter seed 1", "hi", "/save mine"]
    assert "Created new model 'mine'\n" in talk(client, *lines)
    assert client.sent[-1] == (
        "/api/create",
        {
            "model": "mine",
            "from": "tiny",
            "system": "Be brief.",
            "parameters": {"seed": 1},
            "messages": [message("user", "hi"), message("assistant", "fine")],
        },
    )


def test_save_of_nothing_but_the_model() -> None:
    client = FakeClient()
    talk(client, "/save mine")
    assert client.sent[-1] == ("/api/create", {"model": "mine", "from": "tiny"})


def test_set_history() -> None:
    lines = ListLines(["/set nohistory", "/set history"])
    Repl(FakeClient(), Settings("tiny"), lines, str).run()
    assert lines.remembered == [False, True]


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("info", "  Model\n    architecture    llama\n"),
        ("system", "Be brief.\n"),
        ("parameters", "temperature                    0.5\n"),
        ("template", "{{ .Prompt }}\n"),
        ("modelfile", "FROM tiny\n"),
        ("license", "No license for this model.\n"),
    ],
)
def test_show(part: str, text: str) -> None:
    assert text in talk(FakeClient(), f"/show {part}")


def test_show_knows_what_was_set() -> None:
    text = talk(FakeClient(), "/set system Be long.", "/set parameter seed 1", "/show system", "/show parameters")
    assert "Be long.\n" in text
    assert "Be brief." not in text
    assert "seed                           1\n" in text


def test_load_goes_on_with_another_model_and_no_messages() -> None:
    client = FakeClient(["a"], ["b"])
    assert "Loaded other." in talk(client, "one", "/load other", "two")
    assert client.chats()[1] == {"model": "other", "messages": [message("user", "two")]}


def test_a_failed_load_keeps_model_and_messages() -> None:
    client = FakeClient(["a"], ["b"])
    assert "Error: model 'nope' not found\n" in talk(client, "one", "/load nope", "two")
    assert client.chats()[1]["model"] == "tiny"
    assert len(client.chats()[1]["messages"]) == 3


@pytest.mark.parametrize("line", ["/?", "/help", "/? load"])
def test_help_names_every_command_within_80_columns(line: str) -> None:
    text = talk(FakeClient(), line)
    assert all(word in text for word in ("/set", "/show", "/load", "/save", "/clear", "/bye", "/exit", '"""'))
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("line", ["/set", "/? set", "/help /set"])
def test_set_alone_says_what_can_be_set(line: str) -> None:
    text = talk(FakeClient(), line)
    assert text.startswith("Available commands:\n  /set parameter NAME VALUE")
    assert all(word in text for word in ("/set system", "think", "verbose", "~/.ollama/history"))
    assert "/show" not in text
    assert "/load" not in text


@pytest.mark.parametrize("line", ["/show", "/? show", "/help /show"])
def test_show_alone_says_what_can_be_shown(line: str) -> None:
    text = talk(FakeClient(), line)
    assert text.startswith("Available commands:\n  /show info")
    assert all(word in text for word in ("license", "modelfile", "parameters", "system", "template"))
    assert "/set" not in text


@pytest.mark.parametrize("line", ["/foo", "/set foo", "/show foo", "/load", "/set parameter seed"])
def test_an_unknown_command_points_to_help(line: str) -> None:
    client = FakeClient()
    text = talk(client, line)
    assert text.startswith("Error: ")
    assert "type /? for help" in text
    assert client.chats() == []
