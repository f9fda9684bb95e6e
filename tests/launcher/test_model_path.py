"""Test what is said about paths that are no models."""

import shlex
from pathlib import Path

import pytest

from ollampi.launcher.model_path import folders, model_path, no_model, served_name
from ollampi.mpiruntime.errors import ConfigError, ModelError


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Return a folder with a model in it, a link to that, an empty folder and a file."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").touch()
    (tmp_path / "link").symlink_to("tiny")
    (tmp_path / "empty").mkdir()
    (tmp_path / "tiny.gguf").touch()
    return tmp_path


def test_a_model_folder_is_found_and_a_link_keeps_its_name(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_path(f"{shelf}/empty/../tiny/") == shelf / "tiny"
    assert model_path(f"{shelf}/link") == shelf / "link"
    monkeypatch.chdir(shelf / "tiny")
    assert model_path(".") == shelf / "tiny"
    monkeypatch.setenv("HOME", str(shelf))
    assert model_path("~/tiny") == shelf / "tiny"


@pytest.mark.parametrize("given", ["demo", "", "/nowhere", "x" * 5000, "a\nb", "~nobody-here/x", "library/demo:latest"])
def test_what_is_no_folder_may_be_a_name(given: str) -> None:
    assert model_path(given) is None
    assert no_model(given, ["demo:latest"]) if given else True


def test_a_gguf_file_is_a_model_and_no_other_file_is(shelf: Path) -> None:
    assert model_path(f"{shelf}/tiny.gguf") == shelf / "tiny.gguf"
    assert served_name(shelf / "tiny.gguf").short == "tiny:latest"
    assert served_name(shelf / "big-00001-of-00003.gguf").short == "big:latest"
    (shelf / "tiny.bin").touch()
    assert model_path(f"{shelf}/tiny.bin") is None
    text = no_model(str(shelf / "tiny.bin"), [])
    assert text.startswith(f"{shelf}/tiny.bin is a file: a model is a folder with config.json, its tokenizer and")
    assert text.endswith("or a *.gguf file; give the path of one")


def test_a_folder_without_config_is_no_model(shelf: Path) -> None:
    text = no_model(str(shelf / "empty"), [])
    assert text.startswith(f"the folder {shelf}/empty has no config.json that can be read: a model is a folder with")


def test_a_folder_of_models_is_told_how_to_serve_them(shelf: Path) -> None:
    assert no_model(str(shelf), []).endswith(
        f"; try model={shelf}/link, or model_folders={shelf} to serve all models there by name"
    )


def test_a_name_that_nobody_has_comes_with_those_that_are_there() -> None:
    rest = ", and nothing is downloaded; give the path of a model folder, or one of: a:latest, b:latest"
    assert no_model("llama", ["a:latest", "b:latest"]) == f"model 'llama' not found{rest}"
    assert no_model("/no/llama", ["a:latest", "b:latest"]) == (
        f"model '/no/llama' not found (there is no folder /no/llama){rest}"
    )


def test_the_hint_for_a_folder_of_models_can_be_pasted(tmp_path: Path) -> None:
    model = tmp_path / "my models" / "one"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    text = no_model(str(tmp_path / "my models"), [])
    assert shlex.split(text.partition("; try ")[2].partition(", or ")[0]) == [f"model={model}"]


def test_configured_folders_must_be_there(shelf: Path) -> None:
    assert folders([str(shelf), f"{shelf}/empty"]) == [shelf, shelf / "empty"]
    with pytest.raises(ConfigError, match=r"model_folders names /a,/b, which is no folder; write several as \[/a,/b\]"):
        folders(["/a,/b"])


def test_a_folder_gives_its_model_a_name() -> None:
    assert served_name(Path("/models/My model (1)")).short == "My-model--1:latest"


@pytest.mark.parametrize("name", ["模型", "...", ""])
def test_a_folder_with_a_name_for_no_model_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"no model can be called .*: give the path of a link to it"):
        served_name(Path("/") / name)
