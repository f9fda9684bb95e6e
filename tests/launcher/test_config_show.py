"""`ollampi config show` tells every value and where it comes from; the page has the tables of the code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.fake_api import Become

from ollampi.launcher.cli import main
from ollampi.launcher.config_show import told
from ollampi.launcher.configuration_page import filled
from ollampi.launcher.settings import SETTINGS
from ollampi.mpiruntime.errors import ConfigError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_every_setting_is_told_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"api_port": 1, "engine": {"max_queue": 7}, "p2p": {"dial_timeout": "30s"}}')
    environ = {"OLLAMA_KEEP_ALIVE": "5m", "OLLAMA_WEB_LISTEN": ":8080"}
    found = json.loads(told(["--json", "--config", str(file), "server.port=2", "dtype=float32"], environ))
    assert list(found["settings"]) == list(SETTINGS)
    expected: dict[str, tuple[Any, str]] = {
        "server.port": (2, "command line"),
        "engine.max_queue": (7, f"file {file} (engine.max_queue)"),
        "engine.keep_alive_s": (300.0, "environment OLLAMA_KEEP_ALIVE"),
        "engine.dtype": ("float32", "as dtype"),
        "server.host": ("127.0.0.1", "default"),
    }
    for path, (value, source) in expected.items():
        assert found["settings"][path] == {"value": value, "source": source}
    assert [warning.split(" means nothing here")[0] for warning in found["warnings"]] == [
        f"p2p in {file}",
        "OLLAMA_WEB_LISTEN",
    ]


def test_the_table_has_a_line_for_each_setting_and_warning() -> None:
    lines = told(["server.port=2"], {"OLLAMA_WEB_LISTEN": ":8080"}).splitlines()
    assert len(lines) == 1 + len(SETTINGS) + 2
    assert [line.split() for line in lines if line.startswith("server.port ")] == [
        ["server.port", "2", "command", "line"]
    ]
    assert lines[-1].startswith("OLLAMA_WEB_LISTEN means nothing here: ")


def test_a_wrong_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^OLLAMA_MAX_QUEUE is 'x'"):
        told([], {"OLLAMA_MAX_QUEUE": "x"})


def test_the_command_becomes_the_program(become: list[Any]) -> None:
    result = CliRunner().invoke(main, ["config", "show", "--json", "--config", "c.json", "model=x"])
    assert isinstance(result.exception, Become)
    assert become[1] == [
        sys.executable,
        "-m",
        "ollampi.launcher.config_show",
        "--config",
        "c.json",
        "model=x",
        "--json",
    ]


def test_the_page_has_the_tables_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page, "run `python -m ollampi.launcher.configuration_page docs/configuration.md`"
    assert all(f"| `{path}` |" in page for path in SETTINGS)
