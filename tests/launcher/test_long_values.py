"""A message quotes the beginning of a long value, and says how long it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.files import written

from ollampi.launcher.foreign import ROWS
from ollampi.launcher.given import given
from ollampi.launcher.kinds import Text, Texts
from ollampi.launcher.model_path import folders, no_model
from ollampi.launcher.parameters import parse_parameter
from ollampi.launcher.settings import SETTINGS
from ollampi.mpiruntime.errors import ConfigError, quoted, short
from ollampi.mpiruntime.interface import check_interface
from ollampi.mpiruntime.log_files import LogSettings, check_folder

LONG = "x" * 5000
LENGTH = "... (5000 characters)"
WORDS = sorted(path for path, kind in SETTINGS.items() if not isinstance(kind, Text | Texts))
VARIABLES = sorted(row.variable for row in ROWS if row.variable)


def check(message: str) -> None:
    assert LENGTH in message
    assert "x" * 200 in message
    assert "x" * 201 not in message


@pytest.mark.parametrize("path", WORDS)
def test_of_a_setting_on_the_command_line_and_in_a_file(tmp_path: Path, path: str) -> None:
    for words in ([f"{path}={LONG}"], ["--config", written(tmp_path, {path: LONG})]):
        with pytest.raises(ConfigError) as caught:
            given(words, {})
        check(str(caught.value))


def test_of_every_variable_that_does_not_take_it() -> None:
    refused = []
    for variable in VARIABLES:
        try:
            given([], {variable: LONG})
        except ConfigError as e:
            check(str(e))
            refused.append(variable)
    assert {"OLLAMA_KEEP_ALIVE", "OLLAMA_KV_CACHE_TYPE", "OLLAMA_CLUSTER_DISCOVERY_METHOD"} <= set(refused)


@pytest.mark.parametrize("digits", ["9" * 4000, "-" + "9" * 4000])
def test_of_a_number(tmp_path: Path, digits: str) -> None:
    length = f"... ({len(digits)} characters)"
    heartbeat = written(tmp_path, f'{{"discovery": {{"heartbeat_interval": {digits}}}}}')
    for words in ([f"server.port={digits}"], ["--config", heartbeat]):
        with pytest.raises(ConfigError) as caught:
            given(words, {})
        assert length in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "words", [[LONG], [f"{LONG}=1"], [f"server.{LONG}=1"], ["--config", LONG], ["--listen", f"{LONG}:b"]]
)
def test_of_a_word_that_is_no_setting(words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        given(words, {})
    assert " characters)" in str(caught.value)
    assert len(str(caught.value)) < 800  # with the names of all settings


def test_of_names_that_are_not_there() -> None:
    check(no_model(LONG, ["demo"]))
    for call in (
        lambda: check_interface(LONG),
        lambda: parse_parameter("seed", [LONG]),
        lambda: parse_parameter(LONG, ["1"]),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        check(str(caught.value))
    for call in (lambda: folders([LONG]), lambda: check_folder(LogSettings(folder=LONG))):
        with pytest.raises(ConfigError) as caught:
            call()
        assert " characters)" in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "plain", "in_quotes"),
    [
        ("", "", "''"),
        ("a" * 200, "a" * 200, f"'{'a' * 200}'"),
        ("a" * 201, "a" * 200 + "... (201 characters)", f"'{'a' * 200}'... (201 characters)"),
    ],
)
def test_the_bound(text: str, plain: str, in_quotes: str) -> None:
    assert (short(text), quoted(text)) == (plain, in_quotes)


def test_a_list_is_cut_too() -> None:
    assert quoted(["a" * 300]) == "['" + "a" * 198 + "... (304 characters)"
