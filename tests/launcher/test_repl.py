"""Test the conversation with lists of lines and a client that plays the server."""

import pytest
from support.fake_repl import FakeClient, ListLines, message, talk

from ollampi.launcher.client import ApiError, UnreachableError
from ollampi.launcher.repl import Repl, Settings


def test_a_conversation_sends_what_went_before() -> None:
    client = FakeClient(["Hel", "lo"], ["Fine"])
    assert talk(client, "hi", "how are you?") == "Hello\n\nFine\n\n\n"
    assert client.sent[0] == ("/api/generate", {"model": "tiny"})
    assert client.chats()[1] == {
        "model": "tiny",
        "messages": [message("user", "hi"), message("assistant", "Hello"), message("user", "how are you?")],
    }


@pytest.mark.parametrize("word", ["/bye", "/exit", " /bye "])
def test_bye_leaves(word: str) -> None:
    assert talk(FakeClient(), word, "not read") == ""


def test_the_end_of_input_leaves() -> None:
    assert talk(FakeClient()) == "\n"


def test_empty_lines_are_nothing() -> None:
    client = FakeClient()
    talk(client, "", "   ")
    assert client.chats() == []


def test_a_model_that_does_not_exist_ends_it_at_once() -> None:
    with pytest.raises(ApiError, match="not found"):
        talk(FakeClient(), settings=Settings("nope"))


@pytest.mark.parametrize(
    ("lines", "content"),
    [
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""', "one", "", "two", '"""'], "one\n\ntwo"),
        (['"""one"""'], "one"),
        (['"""/bye"""'], "/bye"),
        (['what does """ mean?'], 'what does """ mean?'),
    ],
)
def test_three_quotes_enclose_several_lines(lines: list[str], content: str) -> None:
    client = FakeClient(["ok"])
    talk(client, *lines)
    assert client.chats()[0]["messages"] == [message("user", content)]


def test_lines_within_quotes_have_another_prompt() -> None:
    lines = ListLines(['"""a', 'b"""'])
    Repl(FakeClient(["ok"]), Settings("tiny"), lines, str).run()
    assert lines.prompts == [">>> ", "... ", ">>> "]


def test_clear_forgets() -> None:
    client = FakeClient(["a"], ["b"])
    assert "Cleared the session." in talk(client, "one", "/clear", "two")
    assert client.chats()[1]["messages"] == [message("user", "two")]


@pytest.mark.parametrize("error", [ApiError(500, "a rank failed"), UnreachableError("no server answers")])
def test_an_error_is_one_line_and_the_question_was_never_asked(error: Exception) -> None:
    client = FakeClient(["par", error], ["fine"])
    assert talk(client, "one", "two") == f"par\nError: {error}\nfine\n\n\n"
    assert client.chats()[1]["messages"] == [message("user", "two")]


def test_ctrl_c_stops_an_answer_and_keeps_what_came() -> None:
    client = FakeClient(["par", KeyboardInterrupt()], ["fine"])
    assert talk(client, "one", "two") == "par\n\nfine\n\n\n"
    assert client.closed == 2
    assert client.chats()[1]["messages"] == [
        message("user", "one"),
        message("assistant", "par"),
        message("user", "two"),
    ]


def test_ctrl_c_before_the_first_piece_takes_the_question_back() -> None:
    client = FakeClient([KeyboardInterrupt()], ["fine"])
    talk(client, "one", "two")
    assert client.chats()[1]["messages"] == [message("user", "two")]


def test_ctrl_c_at_the_prompt_says_how_to_leave() -> None:
    assert talk(FakeClient(), KeyboardInterrupt, "/bye") == "\nUse Ctrl-D or /bye to leave.\n"


def test_thinking_is_shown_and_remembered() -> None:
    client = FakeClient([{"thinking": "hm"}, {"thinking": "mm"}, {"content": "\n\nyes"}], ["ok"])
    assert talk(client, "one", "two").startswith("Thinking...\nhmmm\n...done thinking.\n\nyes\n\n")
    assert client.chats()[1]["messages"][1] == {**message("assistant", "\n\nyes"), "thinking": "hmmm"}


def test_hidden_thinking_is_not_shown() -> None:
    client = FakeClient([{"thinking": "hm"}, {"content": "yes"}])
    assert talk(client, "one", settings=Settings("tiny", hide_thinking=True)) == "yes\n\n\n"


def test_settings_send_only_what_is_set() -> None:
    assert Settings("m").request() == {"model": "m"}
    assert Settings("m", options={"seed": 1}, format="json", think=False, keep_alive=0).request() == {
        "model": "m",
        "options": {"seed": 1},
        "format": "json",
        "think": False,
        "keep_alive": 0,
    }
