"""Man pages of all commands, from the text of their help."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ollampi.launcher.cli import main
from ollampi.launcher.man import main as write_pages
from ollampi.launcher.roff import command_names, page, pages

NAMES = command_names(main)
MACROS = {".TH", ".SH", ".PP", ".TP"}


def test_there_is_a_page_for_every_command() -> None:
    assert set(pages(main)) == {"ollampi.1"} | {f"ollampi-{name.replace(' ', '-')}.1" for name in NAMES}
    assert {"cluster", "cluster status", "cluster model load", "proxy metrics"} <= set(NAMES)


@pytest.mark.parametrize("name", ["", *NAMES])
def test_a_page_is_sound_roff(name: str) -> None:
    text = page(main, name)
    assert text.isascii()
    lines = text.splitlines()
    assert lines[0].startswith(".TH OLLAMPI")
    assert [line for line in lines if line.startswith(".SH ")][:3] == [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"]
    assert {line.split()[0] for line in lines if line.startswith((".", "'"))} <= MACROS
    assert text.count(r"\fB") == text.count(r"\fP")
    assert set(re.findall(r"\\(.)", text)) <= set("efB[-(P&")
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-ww", "-man", "-Tutf8"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_every_option(name: str) -> None:
    text = page(main, name).replace(r"\-", "-")
    command: click.Command = main
    for part in name.split():
        assert isinstance(command, click.Group)
        command = command.commands[part]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert all(flag in text for flag in parameter.opts), parameter.name


def test_the_page_of_serve_has_the_settings() -> None:
    assert "\n.TP\n\\fBengine.max_queue=512\\fP\n" in page(main, "serve")


def test_characters_that_roff_reads_are_escaped() -> None:
    @click.group("x")
    def group() -> None:
        pass

    @group.command()
    @click.option("--a", help="'quoted' .dot\\n ~ ^ … `code`")
    def odd(a: str) -> None:
        """.Begin with a dot."""

    text = page(group, "odd")
    assert r"\(aqquoted\(aq .dot\en \(ti \(ha \[u2026] \fBcode\fP" in text
    assert "\n\\&.Begin with a dot.\n" in text


def test_the_module_writes_all_pages(tmp_path: Path) -> None:
    assert write_pages([str(tmp_path / "man")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "man").iterdir()} == pages(main)


def test_the_module_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert write_pages([]) == 2
    assert write_pages(["--help"]) == 2
    assert write_pages([str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.count("\n") == 3


def test_the_command_prints_a_page() -> None:
    for args, name in (([], ""), (["run"], "run"), (["ls"], "list")):
        assert CliRunner().invoke(main, ["man", *args]).output == page(main, name)
    assert CliRunner().invoke(main, ["man", "nope"]).exit_code == 2
