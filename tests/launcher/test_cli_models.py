"""Test the commands that list, describe and unload models: what they print and what they send."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from support.fake_api import FakeApi


def moment(**ahead: float) -> str:
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


@pytest.mark.parametrize("command", ["list", "ls"])
def test_list(api: FakeApi, command: str) -> None:
    model = {"name": "tiny:latest", "digest": "0123456789abcdef", "size": 11_354_112, "modified_at": moment(hours=-2.1)}
    api.answers["/api/tags"] = [{"models": [model]}]
    assert api.run(command).output == (
        "NAME           ID              SIZE     MODIFIED\ntiny:latest    0123456789ab    11 MB    2 hours ago\n"
    )


def test_list_without_models(api: FakeApi) -> None:
    api.answers["/api/tags"] = [{"models": None}]
    assert api.run("list").output == "NAME    ID    SIZE    MODIFIED\n"


MODELS = [{"name": name, "size": 1, "digest": "0"} for name in ("Qwen3:8b", "qwen2:7b", "demo:latest")]


@pytest.mark.parametrize("command", ["list", "ps"])
def test_json_is_what_the_server_says(api: FakeApi, command: str) -> None:
    api.answers["/api/tags" if command == "list" else "/api/ps"] = [{"models": MODELS}]
    assert json.loads(api.run(command, "--json").stdout) == {"models": MODELS}
    assert json.loads(api.run(command, "demo", "--json").stdout) == {"models": MODELS[2:]}
    assert list(json.loads(api.run(command, "--json").stdout)["models"][0]) == ["name", "size", "digest"]


def test_list_takes_the_beginning_of_names_without_regard_to_case(api: FakeApi) -> None:
    api.answers["/api/tags"] = [{"models": MODELS}]
    assert [line.split()[0] for line in api.run("list", "qWEN").stdout.splitlines()] == ["NAME", "Qwen3:8b", "qwen2:7b"]
    assert api.run("ls", "wen").stdout == "NAME    ID    SIZE    MODIFIED\n"


def test_names_cannot_steer_the_terminal(api: FakeApi) -> None:
    api.answers["/api/tags"] = [{"models": [{"name": "a\x1b[2Jb", "digest": "\x1b\x07", "size": 1}]}]
    assert "\x1b" not in api.run("list").stdout


def test_texts_of_a_model_cannot_steer_the_terminal(api: FakeApi) -> None:
    api.answers["/api/show"] = [{**FACTS, "system": "\x1b]0;x\x07Be\x9b2J brief."}]
    shown = api.run("show", "tiny").stdout
    assert "Be\N{REPLACEMENT CHARACTER}2J brief." in shown
    assert not set("\x1b\x07\x9b") & set(shown)
    assert api.run("show", "tiny", "--system").stdout == "\x1b]0;x\x07Be\x9b2J brief.\n"  # asked for as it is


def test_a_model_on_its_way_out_is_stopping(api: FakeApi) -> None:
    api.answers["/api/ps"] = [{"models": [{"name": "a", "digest": "0", "size": 1, "expires_at": moment(minutes=-1)}]}]
    assert api.run("ps").stdout.splitlines()[1].endswith("    Stopping...")


def test_ps(api: FakeApi) -> None:
    shared = {"digest": "sha256:0123456789abcdef", "size": 48_000_000, "context_length": 4096}
    api.answers["/api/ps"] = [
        {
            "models": [
                {**shared, "name": "a", "expires_at": "2318-04-13T02:51:20Z"},
                {**shared, "name": "b", "expires_at": moment(minutes=4.9), "size_vram": 24_000_000},
            ]
        }
    ]
    assert api.run("ps").output == (
        "NAME    ID              SIZE     PROCESSOR          CONTEXT    UNTIL\n"
        "a       0123456789ab    48 MB    100% CPU           4096       Forever\n"
        "b       0123456789ab    48 MB    50%/50% CPU/GPU    4096       4 minutes from now\n"
    )


FACTS = {
    "license": "MIT",
    "modelfile": "FROM tiny",
    "parameters": "seed                           1",
    "template": "{{ .Prompt }}",
    "system": "Be brief.",
    "details": {"family": "llama"},
    "model_info": {"llama.context_length": 512},
}


def test_show(api: FakeApi) -> None:
    api.answers["/api/show"] = [FACTS]
    output = api.run("show", "tiny").output
    assert output.startswith("  Model\n    architecture      llama\n    context length    512\n")
    assert api.requests == [("/api/show", {"stream": False, "model": "tiny", "verbose": False})]


def test_show_verbose_asks_for_everything(api: FakeApi) -> None:
    api.answers["/api/show"] = [FACTS]
    assert "Metadata" in api.run("show", "tiny", "-v").output
    assert api.requests[0][1]["verbose"] is True


@pytest.mark.parametrize("part", ["license", "modelfile", "parameters", "template", "system"])
def test_show_one_part(api: FakeApi, part: str) -> None:
    api.answers["/api/show"] = [FACTS]
    assert api.run("show", "tiny", f"--{part}").output == f"{FACTS[part]}\n"


def test_show_two_parts_is_an_error(api: FakeApi) -> None:
    result = api.run("show", "tiny", "--license", "--system")
    assert (result.exit_code, api.requests) == (1, [])
    assert result.stderr == (
        "Error: only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified\n"
    )


def test_show_json(api: FakeApi) -> None:
    api.answers["/api/show"] = [FACTS]
    assert json.loads(api.run("show", "tiny", "--json").stdout) == FACTS
    assert api.run("show", "tiny", "--json", "--license").exit_code == 1


def test_stop_unloads(api: FakeApi) -> None:
    api.answers["/api/generate"] = [{"done": True, "done_reason": "unload"}]
    result = api.run("stop", "tiny")
    assert (result.exit_code, result.output) == (0, "")
    assert api.requests == [("/api/generate", {"stream": False, "model": "tiny", "keep_alive": 0})]


def test_stop_of_a_model_that_is_not_there(api: FakeApi) -> None:
    result = api.run("stop", "tiny")
    assert (result.exit_code, result.stderr) == (1, 'Error: couldn\'t find model "tiny" to stop\n')


def test_cp(api: FakeApi) -> None:
    api.answers["/api/copy"] = []
    result = api.run("cp", "tiny", "copy")
    assert (result.exit_code, result.output) == (0, "copied 'tiny' to 'copy'\n")
    assert api.requests == [("/api/copy", {"source": "tiny", "destination": "copy"})]


def test_rm_unloads_and_deletes_every_model(api: FakeApi) -> None:
    api.answers |= {"/api/generate": [{"done": True}], "/api/delete": []}
    result = api.run("rm", "a", "b")
    assert (result.exit_code, result.output) == (0, "deleted 'a'\ndeleted 'b'\n")
    assert [(path, body["model"]) for path, body in api.requests] == [
        ("/api/generate", "a"),
        ("/api/delete", "a"),
        ("/api/generate", "b"),
        ("/api/delete", "b"),
    ]
    assert api.methods == ["POST", "DELETE"] * 2
    assert api.requests[0][1]["keep_alive"] == 0


def test_rm_deletes_what_cannot_be_unloaded(api: FakeApi) -> None:
    api.answers |= {"/api/generate": [{"error": "a rank failed"}], "/api/delete": []}
    result = api.run("rm", "a")
    assert (result.exit_code, result.stdout) == (0, "deleted 'a'\n")
    assert result.stderr == "Warning: unable to stop model 'a': a rank failed\n"


def test_rm_stops_at_the_first_that_is_not_there(api: FakeApi) -> None:
    result = api.run("rm", "a", "b")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: model 'a' not found\n")
    assert [path for path, _ in api.requests] == ["/api/generate", "/api/delete"]
