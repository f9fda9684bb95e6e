"""Completion in the shell: the scripts, and what they are told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.fake_api import FakeApi

from ollampi.launcher import cli, cli_options
from ollampi.launcher.cli import main

SOURCE = Path(cli.__file__).parent.parent.parent
MODELS = [{"name": name} for name in ("demo:latest", "Qwen3:8b", "qwen2:7b", "odd\x1b[2J")]


def complete(*words: str, host: str = "127.0.0.1:9") -> list[str]:
    """Return what bash is offered for the last word."""
    env = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_OLLAMPI_COMPLETE": "bash_complete"}
    output = CliRunner().invoke(main, prog_name="ollampi", env={**env, "OLLAMA_HOST": host}).output
    return [line.removeprefix("plain,") for line in output.split()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_asks_the_program(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_OLLAMPI_COMPLETE={shell}_complete" in result.output
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=result.output, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused() -> None:
    assert CliRunner().invoke(main, ["completion", "tcsh"]).exit_code == 2


def test_commands_and_options_are_completed() -> None:
    assert complete("ollampi", "p") == ["plan", "proxy", "ps", "pull", "push"]
    assert "--quantize" in complete("ollampi", "create", "--q")
    assert complete("ollampi", "run", "--think", "h") == ["high"]


@pytest.mark.parametrize("command", ["run", "show", "stop", "push", "cp", "rm"])
def test_models_are_completed_by_the_server(api: FakeApi, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_options, "_COMPLETING_S", 60)
    api.answers["/api/tags"] = [{"models": MODELS}]
    assert complete("ollampi", command, "q", host=api.host) == ["Qwen3:8b", "qwen2:7b"]
    assert complete("ollampi", command, "", host=api.host) == ["demo:latest", "Qwen3:8b", "qwen2:7b"]


def test_without_a_server_nothing_is_offered() -> None:
    assert complete("ollampi", "run", "q") == []
    assert complete("ollampi", "run", "q", host="ftp://x") == []


def test_bash_completes_names_with_a_colon(api: FakeApi, tmp_path: Path) -> None:
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    api.answers["/api/tags"] = [{"models": MODELS}]
    program = tmp_path / "ollampi"
    program.write_text(f"#!{sys.executable}\nfrom ollampi.launcher.cli import main\nmain(prog_name='ollampi')\n")
    program.chmod(0o755)
    script = (
        'eval "$(ollampi completion bash)"; [[ $COMP_WORDBREAKS != *:* ]] || exit 3\n'
        'COMP_WORDS=(ollampi show demo:l); COMP_CWORD=2; _ollampi_completion ollampi; echo "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(SOURCE), "OLLAMA_HOST": api.host}
    done = subprocess.run(["bash", "--norc", "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("demo:latest\n", 0), done.stderr
