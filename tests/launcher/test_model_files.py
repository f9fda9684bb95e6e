"""The files that `create` takes from a folder, and those that it leaves where they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.files import fill

from ollampi.launcher.model_files import adapter_files, digest, model_files, pieces
from ollampi.mpiruntime.errors import OllampiError

WANTED = {
    "config.json": {},
    "generation_config.json": {},
    "tokenizer.json": {},
    "tokenizer_config.json": {},
    "tokenizer.model": b"x",
    "vocab.json": {},
    "merges.txt": [],
    "special_tokens_map.json": {},
    "chat_template.jinja": b"x",
    "model.safetensors": b"x",
}
UNWANTED: dict[str, object] = {
    "modeling_x.py": b"x",
    "pytorch_model.bin": b"x",
    "model.pt": b"x",
    "training_args.bin": b"x",
    "README.md": b"x",
    ".gitattributes": b"x",
    "consolidated.safetensors": b"x",
    "notes.json": {},
}


def named(found: dict[str, Path], folder: Path) -> set[str]:
    """Return the names, after a check that each is that of its file."""
    assert all(folder / name == path for name, path in found.items())
    return set(found)


def test_a_folder_gives_what_a_model_needs(tmp_path: Path) -> None:
    fill(tmp_path, {**WANTED, **UNWANTED})
    fill(tmp_path / "1_Pooling", {"config.json": {}, "other.json": {}})
    fill(tmp_path / "onnx", {"model.onnx": b"x", "config.json": {}})
    fill(tmp_path / "additional_chat_templates", {"tools.jinja": b"x"})
    assert named(model_files(tmp_path), tmp_path) == {
        *WANTED,
        "1_Pooling/config.json",
        "additional_chat_templates/tools.jinja",
    }


def test_an_index_names_the_weights(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json": {}, "model.safetensors.index.json": index}
    weights = {f"{name}.safetensors": b"x" for name in ("model-1", "model-2", "consolidated")}
    fill(tmp_path, {**files, **weights})
    assert named(model_files(tmp_path), tmp_path) == {*files, "model-1.safetensors", "model-2.safetensors"}
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(OllampiError, match=r"model-2\.safetensors is missing"):
        model_files(tmp_path)


def test_links_as_in_the_cache_of_hugging_face_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "blobs", {"0": {}, "1": b"x"})
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").symlink_to("../blobs/0")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/1")
    assert named(model_files(tmp_path / "snapshot"), tmp_path / "snapshot") == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["model.gguf", "sha256-0123"])
def test_a_gguf_file_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    fill(tmp_path, {name: b"GGUF....", "other.gguf": b"GGUF"})
    assert named(model_files(tmp_path / name), tmp_path) == {name}


def test_a_gguf_model_in_parts_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    fill(tmp_path, {"m-00001-of-00002.gguf": b"GGUF", "m-00002-of-00002.gguf": b"GGUF"})
    with pytest.raises(OllampiError, match=r"is part of a model; merge the parts with llama\.cpp's"):
        model_files(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "holds neither a config.json nor a GGUF file"),
        ({"model.safetensors": b"x"}, "holds neither a config.json nor a GGUF file"),
        ({"config.json": {}}, r"no \*\.safetensors in"),
        ({"config.json": {}, "pytorch_model.bin": b""}, r"pytorch_model\.bin may run code and is not read"),
        ({"a.gguf": b"GGUF", "b.gguf": b"GGUF"}, r"holds 2 GGUF files: name one of a\.gguf, b\.gguf"),
        ({"a.gguf": b"PK"}, r"a\.gguf is no GGUF file"),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path: Path, files: dict[str, object], text: str) -> None:
    fill(tmp_path, files)
    with pytest.raises(OllampiError, match=text):
        model_files(tmp_path)


def test_adapters(tmp_path: Path) -> None:
    files: dict[str, object] = {"adapter_config.json": {}, "adapter_model.safetensors": b"x"}
    fill(tmp_path, {**files, "adapter_model.bin": b"x", "config.json": {}, "lora.gguf": b"GGUF"})
    assert named(adapter_files(tmp_path), tmp_path) == set(files)
    assert named(adapter_files(tmp_path / "lora.gguf"), tmp_path) == {"lora.gguf"}
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(OllampiError, match=r"holds no adapter_config\.json"):
        adapter_files(tmp_path)


def test_digests_and_pieces_cover_the_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "x").write_bytes(data)
    seen: list[tuple[int, int]] = []
    found = digest(tmp_path / "x", lambda *bytes_: seen.append(bytes_))
    assert found == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    assert seen[-1] == (len(data), len(data))
    assert b"".join(pieces(tmp_path / "x", len(data), lambda *_: None)) == data


def test_a_file_that_grows_is_sent_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345678")
    assert b"".join(pieces(tmp_path / "x", 5, lambda *_: None)) == b"12345"


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"123")
    with pytest.raises(OllampiError, match="became shorter while it was read"):
        list(pieces(tmp_path / "x", 5, lambda *_: None))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for call in (lambda p: digest(p, lambda *_: None), lambda p: list(pieces(p, 1, lambda *_: None))):
        with pytest.raises(OllampiError, match=r"cannot read .*nope: no such file"):
            call(tmp_path / "nope")
