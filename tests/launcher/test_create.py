"""`create` sends what a Modelfile says, and first the files that the server does not have."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from support.fake_api import FakeApi
from support.files import fill

SUCCESS = [{"status": "writing manifest"}, {"status": "success"}]
WEIGHTS = b"GGUF" + bytes(100)


def sha(data: bytes) -> str:
    """Return a digest as Ollama writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def api(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """Stand in an empty folder, before a server that takes any blob."""
    monkeypatch.chdir(tmp_path)
    api.answers["/api/create"] = SUCCESS
    api.answers["/api/show"] = [{}]
    api.blobs = True
    return api


def created(api: FakeApi) -> Any:
    """Return the body that /api/create got."""
    path, body = api.requests[-1]
    assert path == "/api/create"
    return body


def test_from_a_name(api: FakeApi) -> None:
    Path("Modelfile").write_text("FROM tiny\nSYSTEM Be brief.\nPARAMETER seed 1\n")
    result = api.run("create", "mine")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "gathering model components\nwriting manifest\nsuccess\n"
    assert created(api) == {
        "model": "mine",
        "from": "tiny",
        "system": "Be brief.",
        "parameters": {"seed": 1},
        "stream": True,
    }


def test_quantize(api: FakeApi) -> None:
    Path("Modelfile").write_text("FROM tiny")
    assert api.run("create", "mine", "-q", "q4_K_M").exit_code == 0
    assert created(api)["quantize"] == "q4_K_M"


def test_a_file_is_copied_first(api: FakeApi, tmp_path: Path) -> None:
    fill(tmp_path / "models", {"w.gguf": WEIGHTS, "Modelfile": b"FROM ./w.gguf"})
    result = api.run("create", "mine", "-f", "models/Modelfile")
    assert result.exit_code == 0, result.stderr
    blob = f"/api/blobs/{sha(WEIGHTS)}"
    assert api.requests[:2] == [(blob, None), (blob, WEIGHTS)]
    assert api.methods[:2] == ["HEAD", "POST"]
    assert created(api) == {"model": "mine", "files": {"w.gguf": sha(WEIGHTS)}, "stream": True}
    assert f"copying file {sha(WEIGHTS)}: 100 % of 104 B" in result.stderr


def test_a_file_that_is_there_is_not_copied(api: FakeApi, tmp_path: Path) -> None:
    fill(tmp_path, {"w.gguf": WEIGHTS, "Modelfile": b"FROM w.gguf"})
    api.answers[f"/api/blobs/{sha(WEIGHTS)}"] = []
    result = api.run("create", "mine")
    assert api.methods == ["HEAD", "POST"]
    assert f"using existing file {sha(WEIGHTS)}\n" in result.stderr
    assert created(api)["files"] == {"w.gguf": sha(WEIGHTS)}


def test_a_folder_and_an_adapter(api: FakeApi, tmp_path: Path) -> None:
    fill(tmp_path / "base", {"config.json": {}, "model.safetensors": b"weights", "evil.py": b"import os"})
    fill(tmp_path / "lora", {"adapter_config.json": {"r": 1}, "adapter_model.safetensors": b"factors"})
    Path("Modelfile").write_text("FROM base\nADAPTER ./lora\n")
    assert api.run("create", "mine").exit_code == 0
    body = created(api)
    assert body["files"] == {"config.json": sha(b"{}"), "model.safetensors": sha(b"weights")}
    assert body["adapters"] == {"adapter_config.json": sha(b'{"r": 1}'), "adapter_model.safetensors": sha(b"factors")}


def test_home_is_expanded(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fill(tmp_path / "home", {"w.gguf": WEIGHTS})
    Path("Modelfile").write_text("FROM ~/w.gguf")
    assert api.run("create", "mine").exit_code == 0
    assert created(api)["files"] == {"w.gguf": sha(WEIGHTS)}


def test_the_standard_input(api: FakeApi) -> None:
    assert api.run("create", "mine", "-f", "-", stdin="FROM tiny").exit_code == 0
    assert created(api)["from"] == "tiny"


def test_a_folder_without_a_modelfile(api: FakeApi, tmp_path: Path) -> None:
    assert api.run("create", "mine").stderr == (
        f"Error: no Modelfile or safetensors files found in {tmp_path}: write a Modelfile, or name one with -f\n"
    )
    fill(tmp_path, {"w.gguf": WEIGHTS})
    assert api.run("create", "mine").exit_code == 0
    assert created(api)["files"] == {"w.gguf": sha(WEIGHTS)}


def test_parameters_without_effect_are_a_warning(api: FakeApi) -> None:
    Path("Modelfile").write_text("FROM tiny\nPARAMETER mirostat 1")
    assert api.run("create", "mine").stderr.startswith("Warning: parameter mirostat is deprecated and left out\n")
    assert "parameters" not in created(api)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"FROM tiny\nFRUM x", "Modelfile: line 2: 'FRUM' is no command; use FROM"),
        (b"FROM ./nope", "line 1: FROM ./nope: there is no file or folder "),
        (b"FROM nope.gguf", "line 1: FROM nope.gguf: there is no file or folder "),
        (b"FROM tiny\nADAPTER nope", "line 2: ADAPTER nope: there is no file or folder "),
        (b"FROM tiny\nFROM other", "line 2: FROM other comes after FROM tiny; keep one"),
        (b"FROM tiny\nFROM w.gguf", "FROM tiny and the files of another FROM are two models; keep one"),
        (b"FROM .\nFROM ./again", "line 2: ./again has a second file called w.gguf; rename one of them"),
        (b"FROM ~nobody-of-this-name/x", "line 1: FROM '~nobody-of-this-name/x' is no path"),
        (b"FROM " + b"x/" * 5000, "line 1: FROM 'x/x/"),
        (b"FROM \xff", "Modelfile: line 1 is no text in UTF-8"),
    ],
)
def test_what_cannot_be_created_is_told_before_anything_is_sent(
    api: FakeApi, tmp_path: Path, text: bytes, error: str
) -> None:
    fill(tmp_path, {"w.gguf": WEIGHTS, "Modelfile": text})
    fill(tmp_path / "again", {"w.gguf": WEIGHTS})
    result = api.run("create", "mine")
    assert result.exit_code == 1
    assert result.stderr.removeprefix("gathering model components\n").startswith(f"Error: {error}")
    assert api.requests == []


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["mine", "-f", "nope"], "specified Modelfile wasn't found: there is no nope"),
        (["a b"], "invalid model name 'a b': write [host/][namespace/]model[:tag]"),
        (["mine", "-f", "."], "cannot read .: is a directory"),
    ],
)
def test_arguments_that_cannot_be_used(api: FakeApi, args: list[str], error: str) -> None:
    result = api.run("create", *args)
    assert (result.exit_code, result.stderr) == (1, f"Error: {error}\n")


def test_an_error_of_the_server_ends_it(api: FakeApi) -> None:
    Path("Modelfile").write_text("FROM tiny")
    api.answers["/api/create"] = [{"status": "reading model metadata"}, {"error": "pull model manifest: not found"}]
    result = api.run("create", "mine")
    assert result.exit_code == 1
    assert result.stderr.endswith("reading model metadata\nError: pull model manifest: not found\n")


def test_a_file_that_nobody_may_read(api: FakeApi, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    fill(tmp_path, {"w.gguf": WEIGHTS, "Modelfile": b"FROM w.gguf"})
    (tmp_path / "w.gguf").chmod(0)
    assert "cannot read" in api.run("create", "mine").stderr


def test_a_base_that_is_not_there_is_pulled_first(api: FakeApi) -> None:
    api.missing_once.append("/api/show")
    api.answers["/api/pull"] = SUCCESS
    Path("Modelfile").write_text("FROM tiny\n")
    assert api.run("create", "mine").exit_code == 0
    assert [path for path, _ in api.requests] == ["/api/show", "/api/pull", "/api/show", "/api/create"]
    assert api.requests[1][1]["model"] == "tiny"
