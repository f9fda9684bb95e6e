"""`ollampi cluster start` becomes `ollampi serve` or `ollampi launch`, with the options of both."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from support.fake_api import Become

from ollampi.launcher.cli import main


def test_start_is_serve_or_launch(become: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--log-level", "debug", "--enable-compression", "--debug-network"]
    with pytest.raises(Become):
        CliRunner().invoke(main, ["cluster", "start", *flags, "model=demo"], catch_exceptions=False)
    settings = [
        "logging.level=debug",
        "exchange.communication_strategy=compressed",
        "logging.network=true",
        "model=demo",
    ]
    assert become[1][1:] == ["-m", "ollampi.launcher.serve", *settings]
    result = CliRunner().invoke(main, ["cluster", "start", "-n", "2", "--enable-compression", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "ollampi.launcher.serve exchange.communication_strategy=compressed" in result.stdout
    assert " -n 2 " in result.stdout


@pytest.mark.parametrize("more", [[], ["-n", "2"]])
def test_start_with_restarts_becomes_the_keeper(
    become: list[Any], monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ})  # which the keeper gets more of
    words = ["--restarts", "5", "--enable-compression", "server.port=0"]
    with pytest.raises(Become):
        CliRunner().invoke(main, ["cluster", "start", *more, *words], catch_exceptions=False)
    assert become[1][1:3] == ["-m", "ollampi.launcher.keeper"]
    told, settings = json.loads(become[1][3]), ["exchange.communication_strategy=compressed", words[-1]]
    assert (told["restarts"], told["overrides"]) == (5, settings)
    program = [sys.executable, "-m", "ollampi.launcher.serve", *settings]
    assert told["line"][-len(program) - 2 :] == ["-n", "2" if more else "1", *program]


def test_start_takes_no_less_than_no_restarts(become: list[Any]) -> None:
    result = CliRunner().invoke(main, ["cluster", "start", "--restarts", "-1"])
    assert (result.exit_code, "Invalid value for '--restarts': -1 is not in the range" in result.output) == (2, True)
    assert become == []


@pytest.mark.parametrize(
    ("said", "meant"), [("warn", "warning"), ("DEBUG", "debug"), ("error", "error"), ("trace", "debug")]
)
def test_start_knows_levels_as_serve_does(become: list[Any], said: str, meant: str) -> None:
    with pytest.raises(Become):
        CliRunner().invoke(main, ["cluster", "start", "--log-level", said], catch_exceptions=False)
    assert become[1][3:] == [f"logging.level={meant}"]
    result = CliRunner().invoke(main, ["cluster", "start", "--log-level", "loud"])
    assert (result.exit_code, "must be one of debug, info, warning, error" in result.output) == (1, True)


def test_no_ranks_are_refused_and_not_made_one() -> None:
    for command in (["cluster", "start"], ["launch"]):
        result = CliRunner().invoke(main, [*command, "-n", "0", "--dry-run"])
        assert (result.exit_code, "cannot start 0 ranks: ask for at least 1" in result.output) == (1, True), (
            result.output
        )


@pytest.mark.parametrize("command", [["cluster", "start"], ["launch"]])
def test_help_of_a_start_names_the_options_of_the_server(command: list[str]) -> None:
    text = " ".join(CliRunner().invoke(main, [*command, "--help"]).output.split())
    assert "options of the server such as --config FILE; `ollampi serve --help` lists both" in text
