"""Modelfiles are read as Ollama reads them; what cannot be used is told with its line."""

from __future__ import annotations

from typing import Any

import pytest

from ollampi.launcher.modelfile import COMMANDS, decode, parse
from ollampi.mpiruntime.errors import ConfigError

WHOLE = '''\
# a comment
FROM ./weights.gguf
from "tiny:1b"

ADAPTER ~/lora
PARAMETER temperature 0.5
parameter num_ctx 2048
PARAMETER stop "<|a|>"
PARAMETER stop <|b|>
PARAMETER use_mmap false
   TEMPLATE """{{ .System }}
{{ .Prompt }}"""
SYSTEM """
You are "terse".  # no comment
"""
LICENSE MIT
LICENSE """A second
one"""
MESSAGE user Why?
MESSAGE assistant """Because.
So."""
REQUIRES 0.14.0
RENDERER qwen3-coder
PARSER qwen3-coder
'''


def fields(text: str) -> dict[str, Any]:
    """Return the fields of a Modelfile with that text."""
    return parse(f"FROM x\n{text}").fields


def test_every_command() -> None:
    read = parse(WHOLE)
    assert [(line.number, line.command, line.value) for line in read.sources] == [
        (2, "FROM", "./weights.gguf"),
        (3, "FROM", "tiny:1b"),
        (5, "ADAPTER", "~/lora"),
    ]
    assert read.warnings == []
    assert read.fields == {
        "parameters": {"temperature": 0.5, "num_ctx": 2048, "stop": ["<|a|>", "<|b|>"], "use_mmap": False},
        "template": "{{ .System }}\n{{ .Prompt }}",
        "system": '\nYou are "terse".  # no comment\n',
        "license": ["MIT", "A second\none"],
        "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because.\nSo."}],
        "requires": "0.14.0",
        "renderer": "qwen3-coder",
        "parser": "qwen3-coder",
    }


@pytest.mark.parametrize(
    ("value", "system"),
    [
        ("be brief", "be brief"),
        ("  be brief  ", "be brief"),
        ('"be brief"', "be brief"),
        ('"  be brief  "  ', "  be brief  "),
        ('"be\nbrief"', "be\nbrief"),
        ('"""be brief"""', "be brief"),
        ('"""a  \n  b"""', "a  \n  b"),
        ('"""say "hi" """', 'say "hi" '),
        ('"""say ""twice"" """', 'say ""twice"" '),
        ('""', ""),
        ('""""""', ""),
        ("be 'brief'", "be 'brief'"),
        ("\tbe brief", "be brief"),
        (r'"a\nb"', r"a\nb"),
        ("# this is not a comment", "# this is not a comment"),
        ('"""# nor\n# is this"""', "# nor\n# is this"),
        ('"""FROM y\nSYSTEM z"""', "FROM y\nSYSTEM z"),
    ],
)
def test_values(value: str, system: str) -> None:
    assert fields(f"SYSTEM {value}") == {"system": system}


def test_the_last_of_several_counts_but_for_lists() -> None:
    assert fields("SYSTEM a\nSYSTEM b\nPARAMETER seed 1\nPARAMETER seed 2") == {
        "system": "b",
        "parameters": {"seed": 2},
    }


def test_lines_may_end_as_on_windows() -> None:
    assert fields('SYSTEM """a\r\nb"""\r\nPARAMETER seed 1\r\n') == {"system": "a\nb", "parameters": {"seed": 1}}


def test_roles_and_parameters_may_be_written_in_any_case() -> None:
    assert fields("MESSAGE User hi\nPARAMETER Top_K 3") == {
        "messages": [{"role": "user", "content": "hi"}],
        "parameters": {"top_k": 3},
    }


def test_parameters_without_effect_are_left_out_with_a_warning() -> None:
    read = parse("FROM x\nPARAMETER mirostat 1\nPARAMETER seed 1")
    assert read.fields == {"parameters": {"seed": 1}}
    assert read.warnings == ["parameter mirostat is deprecated and left out"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "no FROM line: name the model to start from, or its file or folder"),
        ("# FROM x", "no FROM line"),
        ("ADAPTER x", "no FROM line"),
        ("\nFRUM x", "line 2: 'FRUM' is no command; use FROM, PARAMETER"),
        ("FROM x\nDRAFT y", "line 2: DRAFT is not supported: the server proposes tokens with the model"),
        ("FROM", "line 1: FROM has no value"),
        ("FROM   \n", "line 1: FROM has no value"),
        ("FROM x\n\n\nPARAMETER", "line 4: PARAMETER has no value"),
        ("FROM x\nPARAMETER seed", "line 2: PARAMETER seed has no value"),
        ("FROM x\nPARAMETER mood 1", "line 2: unknown parameter 'mood': use one of"),
        ("FROM x\nPARAMETER seed a", "line 2: parameter seed takes a whole number, not 'a'"),
        ("FROM x\nPARAMETER top_p 0.5 0.6", "line 2: parameter top_p takes a number, not '0.5 0.6'"),
        ("FROM x\nPARAMETER use_mmap 1", "line 2: parameter use_mmap takes true or false"),
        (
            "FROM x\nMESSAGE robot hi",
            "line 2: the role of MESSAGE is 'robot'; it must be one of system, user, assistant",
        ),
        ("FROM x\nMESSAGE user", "line 2: MESSAGE user has no value"),
        ("FROM x\nREQUIRES soon", "line 2: REQUIRES is 'soon'; it must be a version such as 0.14.0"),
        ('FROM x\nSYSTEM """a\nb\n', 'line 2: the """ of SYSTEM is never closed'),
        ('FROM x\nSYSTEM "a', 'line 2: the " of SYSTEM is never closed'),
        ('FROM x\nSYSTEM """a""" b', 'line 2: the """ of SYSTEM is never closed'),
    ],
)
def test_what_cannot_be_used_is_told_with_its_line(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith(error)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_no_case(command: str) -> None:
    value = {"PARAMETER": "seed 1", "MESSAGE": "user hi", "REQUIRES": "1.2.3"}.get(command, "x")
    assert parse(f"FROM x\n{command.title()} {value}") == parse(f"FROM x\n{command} {value}")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str) -> None:
    assert decode("SYSTEM é 語".encode(encoding)) == "SYSTEM é 語"


def test_bytes_that_are_no_text_are_told_with_their_line() -> None:
    with pytest.raises(ConfigError, match="line 3 is no text in UTF-8; save the Modelfile as UTF-8"):
        decode(b"FROM x\n\nSYSTEM \xff\n")
