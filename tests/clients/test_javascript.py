"""JavaScript's clients take this server for Ollama, OpenAI and Anthropic; `make clients` installs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("javascript")
PROGRAMS = sorted(FOLDER.glob("*.test.mjs"))
TIMEOUT_S = 240


def missing() -> str:
    """Return what keeps the programs from running, "" where nothing does."""
    if shutil.which("node") is None:
        return "there is no node on this machine"
    wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        path = FOLDER / "node_modules" / name / "package.json"
        if not path.is_file() or json.loads(path.read_text())["version"] != version:
            return f"{name} {version} is not in {FOLDER / 'node_modules'}; install it with `make clients`"
    return ""


def test_versions_are_pinned_and_no_registry_is_named() -> None:
    wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    locked = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version
    for name, package in locked.items():
        assert "resolved" not in package, f"{name}: leave the registry's address out (.npmrc says so to npm)"
        assert name == "" or package["integrity"].startswith("sha512-")


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name.partition(".")[0])
def test_client(program: Path, url: str, loopback_registry: str) -> None:
    env = {**os.environ, "OLLAMPI_URL": url, "OLLAMPI_REGISTRY": loopback_registry}
    line = ["node", "--test", "--test-reporter=tap", program.name]
    done = subprocess.run(
        line, cwd=FOLDER, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout
    counts = dict(re.findall(r"^# (\w+) (\d+)$", done.stdout, re.MULTILINE))
    assert int(counts["pass"]) == int(counts["tests"]) > 0, done.stdout
