"""Test what all commands share: help, errors, the server's address."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support.fake_api import FakeApi

from ollampi.launcher import cli
from ollampi.launcher.cli import main

SOURCE = Path(cli.__file__).parent.parent.parent
DEAD = "127.0.0.1:9"  # the discard port: nobody listens
CALLS = ["list", "ls", "ps", "show m", "stop m", "run m", "run m hello", "pull m", "push m", "cp m n", "rm m"]


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == "ollampi version 0.1.0\n"


@pytest.mark.parametrize("name", ["", *main.commands])
def test_help_fits_80_columns(name: str) -> None:
    result = CliRunner().invoke(main, [*filter(None, [name]), "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert len(result.output.splitlines()) > 5


def test_every_command_says_what_it_does() -> None:
    verbs = "serve launch plan run create pull push list ps show stop cp rm completion man"
    assert set(verbs.split()) <= set(main.commands)
    assert all(command.help for command in main.commands.values())


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, ollampi.launcher.cli; print(*{'torch', 'mpi4py', 'hydra', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize("line", CALLS)
def test_no_server_is_one_line_and_exit_1(line: str) -> None:
    result = CliRunner().invoke(main, [*line.split(), "--host", DEAD])
    assert result.exit_code == 1
    assert re.fullmatch(
        rf"Error: no server answers at http://{DEAD} \(.*\): start .*`make serve` or `ollampi launch -n 4`.*\n",
        result.stderr,
    )
    assert result.stdout == ""


@pytest.mark.parametrize("args", [["show", "m"], ["run", "m", "hello"], ["pull", "m"], ["rm", "m"]], ids=" ".join)
def test_an_error_of_the_server_is_one_line_and_exit_1(api: FakeApi, args: list[str]) -> None:
    result = api.run(*args)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: model 'm' not found\n")


def test_host_option_beats_the_environment(api: FakeApi) -> None:
    api.answers["/api/ps"] = [{"models": []}]
    result = CliRunner().invoke(main, ["ps", "--host", f"http://{api.host}"], env={"OLLAMA_HOST": DEAD})
    assert result.exit_code == 0, result.output


def test_a_strange_host_is_one_line_and_exit_1() -> None:
    result = CliRunner().invoke(main, ["ps"], env={"OLLAMA_HOST": "ftp://x"})
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: OLLAMA_HOST is 'ftp://x'; it must be host, host:port, ")
    assert result.stderr.endswith("(the scheme must be http or https)\n")


def test_the_option_is_named_where_it_is_the_strange_one() -> None:
    result = CliRunner().invoke(main, ["ps", "--host", "x:y"], env={"OLLAMA_HOST": "z"})
    assert result.stderr.startswith("Error: --host is 'x:y'; it must be")


def test_the_alias_is_not_a_command_of_its_own() -> None:
    context = click.Context(main)
    for alias, name in (("ls", "list"), ("start", "serve")):
        assert main.get_command(context, alias) is main.get_command(context, name)
        assert alias not in main.list_commands(context)
