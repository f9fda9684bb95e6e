"""hf.co/USER/REPOSITORY: through huggingface_hub against a stub of Hugging Face on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.hub import publish_repository
from support.pulls import BIG, QUICK, Pull, bytes_of, named
from support.registry import Registry, digest_of, running_registry

from ollampi.api.errors import ApiError
from ollampi.api.registry.hub import folder_files, gguf_file
from ollampi.api.registry.hub_listing import HubFile
from ollampi.api.registry.pull import pull
from ollampi.api.registry.transfer import TransferOptions
from ollampi.api.store.local import LocalStore

FOLDER = {
    "config.json": b'{"model_type":"llama"}',
    "model-00001-of-00002.safetensors": BIG,
    "model-00002-of-00002.safetensors": b"the rest",
    "model.safetensors.index.json": b'{"weight_map":{}}',
    "tokenizer.json": b"{}",
    "1_Pooling/config.json": b'{"pooling_mode_cls_token":true}',
}
NOT_ASKED_FOR = {
    "pytorch_model.bin": b"a pickle",
    "modeling_x.py": b"import os",
    "model.pt": b"a pickle",
    "consolidated.safetensors": b"the same again",
    "original/model.safetensors": b"the same again",
    "README.md": b"words",
    "onnx/model.onnx": b"another format",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with running_registry(tmp_path / "hub") as hub:
        publish_repository(hub, "user/folder", {**FOLDER, **NOT_ASKED_FOR})
        ggufs = {f"model-{name}.gguf": name.encode() for name in ("Q8_0", "Q4_K_M", "q5_k_m", "F16")}
        publish_repository(hub, "user/ggufs", {**ggufs, "mmproj-F16.gguf": b"eyes", "config.json": b"{}"})
        yield hub


@pytest.fixture
def fetched(hub: Registry, store: LocalStore) -> Pull:
    def do(name: str, **more: Any) -> list[dict[str, Any]]:
        options = TransferOptions(hub_endpoint=hub.url, limits=QUICK)
        return list(pull(store, named(name), replace(options, **more)))

    return do


@pytest.mark.parametrize("name", ["hf.co/user/folder", "huggingface.co/user/folder", "hf.co/user/folder:v1"])
def test_a_folder_of_safetensors(hub: Registry, store: LocalStore, fetched: Pull, name: str) -> None:
    lines = fetched(name)
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[-1] == {"status": "success"}
    assert any(line.get("digest") == digest_of(BIG) and line.get("completed") == len(BIG) for line in lines)
    manifest = store.read(named(name))
    assert manifest is not None
    view = store.views.path(manifest)
    found = {str(path.relative_to(view)): path.read_bytes() for path in view.rglob("*") if path.is_file()}
    assert found == FOLDER
    asked = [line.rpartition("/")[2] for line in hub.lines("/resolve/")]
    assert set(asked) == {name.rpartition("/")[2] for name in FOLDER}


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("", b"Q4_K_M"),
        (":latest", b"Q4_K_M"),
        (":Q8_0", b"Q8_0"),
        (":q8_0", b"Q8_0"),
        (":Q5_K_M", b"q5_k_m"),
        (":model-F16", b"F16"),
        (":model-F16.gguf", b"F16"),
    ],
)
def test_a_gguf_file_by_its_tag(store: LocalStore, fetched: Pull, tag: str, expected: bytes) -> None:
    fetched(f"hf.co/user/ggufs{tag}")
    assert bytes_of(store, f"hf.co/user/ggufs{tag}") == [expected]


def test_a_tag_that_fits_nothing_names_what_there_is(fetched: Pull) -> None:
    message = r"^pull model manifest: no GGUF file fits the tag 'Q2_K'; there are model-F16, .*model-q5_k_m$"
    with pytest.raises(ApiError, match=message):
        fetched("hf.co/user/ggufs:Q2_K")


def test_an_unknown_repository(fetched: Pull) -> None:
    with pytest.raises(ApiError, match=r"^pull model manifest: "):
        fetched("hf.co/user/unknown")


def test_a_repository_without_a_model(hub: Registry, fetched: Pull) -> None:
    publish_repository(hub, "user/empty", NOT_ASKED_FOR)
    with pytest.raises(ApiError, match="has neither GGUF nor safetensors files"):
        fetched("hf.co/user/empty")


@pytest.mark.parametrize("path", ["tokenizer.json", "model-00002-of-00002.safetensors"])
def test_other_bytes_than_listed_are_not_kept(hub: Registry, store: LocalStore, fetched: Pull, path: str) -> None:
    key = next(key for key in hub.files if key.endswith(path) and "folder" in key)
    data, headers = hub.files[key]
    hub.files[key] = (b"x" * len(data), headers)
    with pytest.raises(ApiError, match=r"other bytes than listed|digest mismatch"):
        fetched("hf.co/user/folder")
    assert not store.names()


def test_a_busy_hub_is_asked_again(hub: Registry, store: LocalStore, fetched: Pull) -> None:
    hub.fail("/api/models/", "status", 503, times=2)
    hub.fail("/resolve/", "status", 500, times=3)
    hub.fail("00001-of-00002", "drop", 1000, times=2)
    fetched("hf.co/user/folder")
    assert store.read(named("hf.co/user/folder")) is not None


def test_a_redirect_to_a_private_host_is_not_followed(hub: Registry, other: Registry, fetched: Pull) -> None:
    hub.fail("/resolve/", "redirect", f"{other.url}/x", times=100)
    with pytest.raises(ApiError, match="plain HTTP"):
        fetched("hf.co/user/folder")
    assert not other.seen


def test_another_host_sees_no_token(hub: Registry, other: Registry, store: LocalStore, fetched: Pull) -> None:
    other.files["/x"] = (BIG, {})
    hub.fail("00001-of-00002", "redirect", f"{other.url}/x", times=100)
    fetched("hf.co/user/folder", registries=(other.url,))
    assert other.seen
    assert all("hf_secret" not in str(headers) for _, headers in other.seen)


@pytest.mark.parametrize("path", ["../x", "/etc/x.safetensors", "a\\b.safetensors", "%2e%2e/x"])
def test_paths_that_leave_the_folder_are_left_out(hub: Registry, store: LocalStore, fetched: Pull, path: str) -> None:
    publish_repository(hub, "user/odd", {**FOLDER, path: b"x"})
    fetched("hf.co/user/odd")
    manifest = store.read(named("hf.co/user/odd"))
    assert manifest is not None
    assert {layer.name for layer in manifest.layers} == set(FOLDER)


@pytest.mark.parametrize("size", [-1, None, 1 << 60, "5"])
def test_sizes_that_cannot_be(hub: Registry, store: LocalStore, fetched: Pull, size: object) -> None:
    key = "/api/models/user/folder"
    values = json.loads(hub.files[key][0])
    next(entry for entry in values["siblings"] if entry["rfilename"] == "tokenizer.json")["size"] = size
    hub.files[key] = (json.dumps(values).encode(), hub.files[key][1])
    with pytest.raises(ApiError, match=r"^pull model manifest: "):
        fetched("hf.co/user/folder")


def listed(*paths: str) -> list[HubFile]:
    return [HubFile(path, 1, "http://x") for path in paths]


PARTS = ("Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf")


def test_a_model_in_parts_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(ApiError, match="m-Q4_K_M lies in 2 parts, which the store cannot hold"):
        gguf_file(listed(*PARTS, "m-Q8_0.gguf"), "q4_k_m")
    with pytest.raises(ApiError, match="lies in 2 parts"):
        gguf_file(listed(*PARTS), "latest")


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        (("m-F16.gguf", "m-Q5_K_M.gguf"), "m-Q5_K_M.gguf"),
        (("m-IQ2_XS.gguf",), "m-IQ2_XS.gguf"),
        ((*PARTS, "m-F16.gguf", "m-Q8_0.gguf"), "m-Q8_0.gguf"),
        ((*PARTS, "m-IQ1_S.gguf"), "m-IQ1_S.gguf"),
        (("mmproj-Q4_K_M.gguf", "m.gguf"), "m.gguf"),
    ],
)
def test_the_default_is_what_comes_close(paths: tuple[str, ...], chosen: str) -> None:
    found = gguf_file(listed(*paths), "latest")
    assert found is not None
    assert found.path == chosen


def test_no_gguf_file() -> None:
    assert gguf_file(listed("config.json", "mmproj.gguf"), "latest") is None


def test_a_folder_needs_its_config() -> None:
    assert folder_files(listed("model.safetensors")) == []
    assert folder_files(listed("config.json")) == []


def test_huggingface_hub_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, ollampi.api.registry.pull; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
