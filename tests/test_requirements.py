"""Every row of docs/requirements.md is there, and the tests, programs and commands that it names exist."""

from __future__ import annotations

import re

import click
import pytest
from support.conformance import ROOT, Row, missing

from ollampi.launcher.cli import main
from ollampi.launcher.roff import command_names

DOCS = ROOT / "docs" / "requirements.md"
ROWS = [line.strip("| ").split(" | ") for line in DOCS.read_text().splitlines() if re.match(r"\| \d-\d+ \|", line)]
REASONS = ("Not yet: ", "Outside: ")


def test_every_row_is_there_once_and_in_order() -> None:
    found = [row[0] for row in ROWS]
    assert [key for key in found if key.startswith("0-")] == [f"0-{number}" for number in range(1, 68)]
    assert len(set(found)) == len(found)
    assert all(len(row) == 3 and all(row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0]))
def test_what_a_row_names_exists(row: list[str]) -> None:
    key, promise, shown = row
    named = re.findall(r"`([^`]+)`", shown)
    assert named or any(reason in shown for reason in REASONS), f"{key} names nothing and gives no reason"
    commands = command_names(main)
    for name in named:
        if "::" in name:
            assert not missing(Row("", key, promise, f"tests/{name}")), f"{key}: tests/{name} does not exist"
        elif name.startswith("python "):
            assert (ROOT / name.split()[1]).is_file(), name
        elif name.startswith("ollampi "):
            words = [word for word in name.split()[1:] if not word.startswith("-")]
            assert " ".join(words) in commands, name
        elif name.startswith("make "):
            assert re.search(rf"^{name.split()[1]}:", (ROOT / "Makefile").read_text(), re.M), name


def test_the_commands_of_the_docs_exist() -> None:
    text = (ROOT / "docs" / "cluster-api.md").read_text()
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ollampi ")]
    assert lines
    for line in lines:
        words = line.split()[1:]
        group: click.Command = main
        while words and isinstance(group, click.Group):
            assert words[0] in group.commands, line
            group = group.commands[words.pop(0)]
        for flag in re.findall(r"--[a-z-]+", line.partition(" | ")[0]):
            assert any(flag in parameter.opts for parameter in group.params), (line, flag)


def test_paths_of_the_docs_are_routes() -> None:
    text = "".join((ROOT / "api" / "wires" / name).read_text() for name in ("cluster.py", "log_level.py"))
    documented = set(re.findall(r"/api/cluster/([\w/-]+)", (ROOT / "docs" / "cluster-api.md").read_text()))
    assert documented == {
        "status", "nodes", "health", "join", "leave", "model/list", "model/info", "model/load", "model/unload",
        "log-level",
    }  # fmt: skip
    for name in documented:
        assert name.rpartition("/")[2] in text
