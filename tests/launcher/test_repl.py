"""Test the conversation with lists of lines and a client that plays the server."""

from collections.abc import Generator, Iterable
from typing import Any

import pytest

from ollampi.launcher.client import ApiError, Client, Json, UnreachableError
from ollampi.launcher.repl import Repl, Settings, parse_parameter
from ollampi.mpiruntime.errors import ConfigError

FACTS = {
    "template": "{{ .Prompt }}",
    "modelfile": "FROM tiny",
    "parameters": "temperature                    0.5",
    "system": "Be brief.",
    "details": {"family": "llama"},
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


@pytest.mark.parametrize(
    ("name", "values", "value"),
    [("seed", ["1"], 1), ("top_p", ["0.5"], 0.5), ("top_p", ["1"], 1.0), ("stop", ["a"], ["a"])],
)
def test_parse_parameter(name: str, values: list[str], value: object) -> None:
    parsed = parse_parameter(name, values)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("seed", ["x"], "seed takes a whole number, not 'x'"),
        ("seed", ["1", "2"], "seed takes a whole number, not '1 2'"),
        ("top_p", ["x"], "top_p takes a number, not 'x'"),
        ("mood", ["x"], "unknown parameter 'mood': use one of .*temperature"),
    ],
)
def test_parse_parameter_refuses(name: str, values: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_parameter(name, values)


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
    assert all(word in text for word in ("/set", "/show", "/load", "/clear", "/bye", "/exit", '"""'))
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
