"""Models of the store beside those in folders: found, listed, shown, and refused where a blob is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from support.gguf_files import write_gguf

from ollampi.api.app import create_app
from ollampi.api.errors import ApiError
from ollampi.api.settings import Settings
from ollampi.api.show import show_answer
from ollampi.api.store import stored
from ollampi.api.store.catalog import Store
from ollampi.api.store.local import LocalStore
from ollampi.launcher import assemble
from ollampi.launcher.config import compose_config
from ollampi.mpiruntime.checkpoint import open_checkpoint
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.model_config import read_config

LIBRARY = "registry.ollama.ai/library"


@pytest.fixture
def texts() -> list[tuple[str, bytes]]:
    """Return the small layers of a model as Ollama writes them."""
    return [
        ("template", b"{{ .System }}{{ .Prompt }}{{ range .Tools }}{{ end }}{{ .Response }}"),
        ("system", "Grüße".encode()),
        ("params", b'{"num_ctx":64,"stop":["<|a|>","<|b|>"],"temperature":0.5}\n'),
        ("messages", b'[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]\n'),
        ("license", b"MIT"),
        ("license", b"Apache"),
        ("projector", b"images"),
    ]


@pytest.fixture
def catalog(local: LocalStore, models_folder: Path) -> Store:
    return Store([models_folder], local)


def folder_layers(folder: Path) -> list[tuple[str, bytes, str]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kind = {True: "tensor", False: "json"}
    return [
        (kind[path.suffix == ".safetensors"], path.read_bytes(), str(path.relative_to(folder))) for path in files
    ]  # fmt: skip


def test_a_gguf_model_of_ollama_is_served_from_its_blob(catalog, put_model, gguf_file, texts, root):
    digest = put_model(f"{LIBRARY}/small/q8", ("model", gguf_file.read_bytes()), *texts)
    model = catalog.find("Small:Q8")
    assert (model.full_name, model.digest, model.is_stored) == ("small:q8", digest, True)
    assert model.path.parent == root / "blobs"
    layers = sum(len(layer[1]) for layer in texts)
    assert model.size_bytes == gguf_file.stat().st_size + layers + len(b'{"model_format":"gguf"}')
    assert model.modified_at == (root / "manifests" / LIBRARY / "small" / "q8").stat().st_mtime
    assert (model.system, model.licenses) == ("Grüße", ["MIT", "Apache"])
    assert model.parameters == {"num_ctx": 64, "stop": ["<|a|>", "<|b|>"], "temperature": 0.5}
    assert model.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert model.capabilities == ["completion", "tools"]
    assert (model.details["format"], model.details["quantization_level"]) == ("gguf", "Q8_0")


def test_the_runtime_reads_a_blob_as_it_reads_the_file(put_model, gguf_file, catalog):
    put_model(f"{LIBRARY}/small/latest", ("model", gguf_file.read_bytes()))
    path = catalog.find("small").path
    assert read_config(path) == read_config(gguf_file)
    blob, file = open_checkpoint(path), open_checkpoint(gguf_file)
    assert blob.sources.keys() == file.sources.keys()
    name = "model.embed_tokens.weight"
    read: dict[str, list[torch.Tensor]] = {"blob": [], "file": []}
    for kind, checkpoint in (("blob", blob), ("file", file)):
        rows = range(checkpoint.sources[name].shape[0])
        checkpoint.read(name, rows, None, lambda found, kind=kind: read[kind].append(found.values.clone()))
    assert torch.equal(torch.cat(read["blob"]), torch.cat(read["file"]))


def test_a_folder_of_tensors_is_served_through_links(catalog, put_model, make_model, tmp_path, root, local):
    folder = make_model(tmp_path / "m", chat_template="{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    put_model("host.example:99/me/m/latest", *folder_layers(folder), ("system", b"S"))
    model = catalog.find("host.example:99/me/m")
    assert model.path.parent == root / "views"
    link = model.path / "additional_chat_templates" / "tool_use.jinja"
    assert os.readlink(link).startswith("../../../blobs/sha256-")  # the store may be moved
    assert model.texts.templates == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    assert model.config == json.loads((folder / "config.json").read_text())
    put_model("host.example:99/me/n/latest", *folder_layers(folder), ("system", b"other"))
    assert catalog.find("host.example:99/me/n").path == model.path  # the same weights are loaded once
    local.remove(model.name)
    assert model.path.is_dir()
    local.remove(catalog.find("host.example:99/me/n").name)
    assert not model.path.exists()


def test_single_tensors_as_ollama_keeps_them_make_a_folder(catalog, put_model, make_model, tmp_path):
    folder = make_model(tmp_path / "m")
    layers = [layer for layer in folder_layers(folder) if layer[0] == "json"]
    tensor = (folder / "model.safetensors").read_bytes()
    put_model(f"{LIBRARY}/m/latest", *layers, ("tensor", tensor, "language_model/model.embed.weight"))
    model = catalog.find("m")
    assert {tensor.path.name for tensor in model.tensors} == {"language_model--model.embed.weight.safetensors"}


def test_a_view_that_cannot_be_made_is_said(put_model, make_model, tmp_path, root, monkeypatch):
    put_model(f"{LIBRARY}/m/latest", *folder_layers(make_model(tmp_path / "m")))

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "symlink", refuse)
        with pytest.raises(ModelError, match="no folder of links to its files"):
            Store([], LocalStore(root, is_read_only=True)).find("m")
    assert Store([], LocalStore(root)).find("m").tensors


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([("system", b"S")], "names no weights"),
        ([("model", b"GG")], "sha256-"),
        ([("model", b"")], "sha256-"),
        ([("params", b"[]")], "params is no JSON object"),
        ([("params", b"{")], "params is no JSON object"),
        ([("messages", b"{}")], "messages is no JSON list"),
        ([("messages", b'[{"role":"user"}]')], "role and content"),
        ([("system", b"\xff")], "not valid UTF-8"),
        ([("system", b"a" * (1 << 20) + b"b")], "more than 1048576 bytes"),
        ([("model", b"1"), ("model", b"2")], "2 GGUF files"),
    ],
)
def test_what_cannot_be_served_is_named_and_left_out(layers, text, catalog, put_model, gguf_file):
    put_model(f"{LIBRARY}/bad/latest", *layers)
    with pytest.raises(ModelError, match=f"model bad:latest: .*{text}"):
        catalog.find("bad")
    assert "bad:latest" not in [model.full_name for model in catalog.models()]


def test_a_blob_of_another_size_is_refused_with_both(catalog, put_model, gguf_file, root):
    """Advisory 16: a bad blob must not be served for ever."""
    put_model(f"{LIBRARY}/m/latest", ("model", gguf_file.read_bytes()))
    blob = catalog.find("m").path
    size = blob.stat().st_size
    with blob.open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(
        ModelError, match=rf"model m:latest: blob sha256:{blob.name[7:]} has {size - 1} bytes, not {size}"
    ):
        catalog.find("m")
    blob.unlink()
    with pytest.raises(ModelError, match=rf"model m:latest: blob sha256:{blob.name[7:]} of {size} bytes is missing"):
        catalog.find("m")
    blob.write_bytes(gguf_file.read_bytes())
    assert catalog.find("m").size_bytes


def test_nothing_is_read_twice_while_unchanged(catalog, put_model, gguf_file, monkeypatch, root):
    put_model(f"{LIBRARY}/m/latest", ("model", gguf_file.read_bytes()), ("system", b"S"))
    first = catalog.find("m")
    with monkeypatch.context() as patched:
        patched.setattr(stored, "read_stored", None)
        patched.setattr(stored.LocalStore, "read", None)
        assert catalog.find("m") is first
        assert first in catalog.models()
    put_model(f"{LIBRARY}/m/latest", ("model", gguf_file.read_bytes()), ("system", b"T"))
    assert catalog.find("m").system == "T"
    (root / "manifests" / LIBRARY / "m" / "latest").unlink()
    with pytest.raises(ApiError, match="not found"):
        catalog.find("m")


def test_a_given_path_goes_before_the_store_and_the_store_before_folders(put_model, gguf_file, models_folder, local):
    put_model(f"{LIBRARY}/demo/latest", ("model", gguf_file.read_bytes()))
    assert Store([models_folder], local).find("demo").is_stored
    given = Store([models_folder / "demo", models_folder], local)
    assert not given.find("demo").is_stored
    name = given.find("demo").name
    assert (given.hides(name), given.is_fixed(name)) == (True, True)
    assert (Store([models_folder], local).hides(name), Store([models_folder], local).is_fixed(name)) == (False, False)


def test_of_copies_the_one_of_the_same_name_is_found_by_path(catalog, put_model, gguf_file):
    for name in ("a", "b"):
        put_model(f"{LIBRARY}/{name}/latest", ("model", gguf_file.read_bytes()), ("system", name.encode()))
    path = str(catalog.find("a").path)
    assert [catalog.at(path, f"{name}:latest").system for name in ("a", "b")] == ["a", "b"]
    assert catalog.at(path).full_name in ("a:latest", "b:latest")
    assert catalog.at("/nowhere") is None


def test_show_tells_what_the_manifest_brings(catalog, put_model, gguf_file, texts):
    put_model(f"{LIBRARY}/m/latest", ("model", gguf_file.read_bytes()), *texts)
    shown = show_answer(catalog.find("m"), "", False)
    assert shown["license"] == "MIT\nApache"
    assert shown["template"] == texts[0][1].decode()
    assert shown["system"] == "Grüße"
    assert shown["messages"][1] == {"role": "assistant", "content": "ho"}
    assert shown["parameters"].splitlines() == [
        "num_ctx                        64",
        'stop                           "<|a|>"',
        'stop                           "<|b|>"',
        "temperature                    0.5",
    ]
    lines = shown["modelfile"].splitlines()
    for line in ("FROM m:latest", 'SYSTEM """Grüße"""', 'PARAMETER stop "<|b|>"', "PARAMETER num_ctx 64",
                 'LICENSE """Apache"""', 'MESSAGE user """hi"""'):  # fmt: skip
        assert line in lines
    assert show_answer(catalog.find("m"), "Mine", False)["system"] == "Mine"


def test_the_server_lists_and_asks_it(engine, put_model, gguf_file, local, models_folder):
    digest = put_model(f"{LIBRARY}/m/latest", ("model", gguf_file.read_bytes()))
    client = create_app(engine, Store([models_folder], local), Settings()).test_client()
    entries = {entry["name"]: entry for entry in client.get("/api/tags").json["models"]}
    assert entries["m:latest"]["digest"] == digest
    assert len(entries) == 4
    engine.says("Hi")
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "stream": False}
    assert client.post("/api/chat", json=body).status_code == 200
    assert engine.requests[-1].model.path == str(local.blobs.path(local.read(local.names()[0]).layers[0].digest))


@pytest.mark.parametrize("given", ["setting", "OLLAMA_MODELS", "home"])
def test_the_start_finds_models_of_the_store(given, put_model, gguf_file, root, monkeypatch, tmp_path):
    put_model(f"{LIBRARY}/m/q8", ("model", gguf_file.read_bytes()))
    monkeypatch.setenv("HOME", str(tmp_path / "home" if given == "home" else tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    environ = {"OLLAMA_MODELS": str(root)} if given == "OLLAMA_MODELS" else {}
    config = compose_config([f"store={root}"] if given == "setting" else [], environ)
    assert Path(assemble.find_model(config, "M:Q8").path).parent == root / "blobs"
    with pytest.raises(ModelError, match="m:q8"):
        assemble.find_model(config, "other")


def test_adapters_of_the_start_come_after_those_of_the_model(put_model, gguf_file, root, tmp_path):
    adapter = [
        ("adapter", b"{}", "adapters/0/adapter_config.json"),
        ("adapter", b"", "adapters/0/adapter_model.safetensors"),
    ]
    put_model(f"{LIBRARY}/m/latest", ("model", gguf_file.read_bytes()), *adapter)
    ref = assemble.find_adapted(compose_config([f"store={root}", "model=m", f"adapter={tmp_path}"], {}))
    own, given = ref.adapters
    assert given == str(tmp_path)
    assert Path(own).parts[-2:] == ("adapters", "0")
    assert sorted(path.name for path in Path(own).iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_model_in_parts_is_no_blob(put_model, gguf_checkpoint, tmp_path, catalog):
    write_gguf(tmp_path / "p.gguf", gguf_checkpoint, "F32", {"split.count": 2, "split.no": 0})
    put_model(f"{LIBRARY}/m/latest", ("model", (tmp_path / "p.gguf").read_bytes()))
    with pytest.raises(ModelError, match="merge the parts"):
        catalog.find("m")
