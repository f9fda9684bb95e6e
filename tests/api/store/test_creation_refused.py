"""What is no model and is refused before anything is written: names, paths, digests, files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from pathlib import Path

import pytest
from support.creations import refused, upload, uploaded
from support.gguf_files import write_gguf
from support.vocabularies import gguf_of_tokenizer

from ollampi.api.errors import ApiError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of PEFT and transformers


@pytest.mark.parametrize("name", ["", "../../x", "a/../../b", "host:99/../x", "/etc/passwd", "a b", "x" * 1000])
def test_names_that_are_none_are_refused(name, make, root):
    for wanted in ({"from_": "demo"}, {"files": {}}):
        with pytest.raises(ApiError, match=r"^invalid model name$"):
            make(name, **wanted)
    assert not root.exists()


def test_a_base_is_a_name_and_never_a_path(make, tmp_path, root, monkeypatch):
    """Advisory 5: nothing tells whether a file exists, and none is opened."""
    there = tmp_path / "there"
    there.write_text("x")
    os.mkfifo(tmp_path / "fifo")
    texts, looked_at = set(), []

    def recorded(real):
        def call(path, *rest, **more):
            looked_at.append(path)
            return real(path, *rest, **more)

        return call

    with monkeypatch.context() as patched:
        for module, function in ((os, "stat"), (os, "lstat"), (os, "open"), (os, "listdir"), (io, "open")):
            patched.setattr(module, function, recorded(getattr(module, function)))
        for path in (there, tmp_path / "absent", tmp_path / "fifo", Path("/dev/zero"), Path("/etc/passwd"), tmp_path):
            for text in (str(path), f"../..{path}", f"file://{path}"):
                with pytest.raises(ApiError) as caught:
                    make("new", from_=text)
                texts.add((caught.value.status, str(caught.value)))
    assert texts == {(400, "invalid model name")}
    assert [path for path in looked_at if not isinstance(path, int) and str(path).startswith(("/etc", "/dev"))] == []
    assert [path for path in looked_at if str(path) in map(str, (there, tmp_path / "absent", tmp_path / "fifo"))] == []
    with pytest.raises(ApiError, match=r"^model 'there' not found$") as caught:
        make("new", from_="there")
    assert caught.value.status == 404
    assert not root.exists()


def test_neither_a_base_nor_files(make):
    for wanted in ({}, {"files": {}}, {"files": None}):
        assert refused(make, **wanted) == "neither 'from' or 'files' was specified"


EMPTY = f"sha256:{hashlib.sha256(b'').hexdigest()}"
PATHS = [
    "../x",
    "/etc/passwd",
    "a/../../x",
    "./x",
    "a//b",
    "",
    ".",
    "..",
    "a/",
    "C:\\x",
    "..\\x",
    "a:b",
    "a\0b",
    "a\nb",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_leave_the_folder_are_refused(path, make, root):
    """Advisory 3."""
    for field in ("files", "adapters"):
        wanted = {"from_": "demo", field: {path: EMPTY}} if field == "adapters" else {field: {path: EMPTY}}
        assert refused(make, **wanted) == "file path must be relative"
    assert not root.exists()


@pytest.mark.parametrize(
    "digest", ["", "sha256:../../x", "sha256:" + "0" * 63, "sha256-" + "0" * 64 + "/../x", "a" * 10_000]
)
def test_digests_that_are_none_are_refused(digest, make):
    assert refused(make, files={"model.gguf": digest}) == "invalid digest format"


def test_archives_and_unknown_files_are_no_model(make, local, tmp_path):
    zipped = upload(local, b"PK\x03\x04" + b"../../../x" * 10)
    assert refused(make, files={"model.zip": zipped}) == "unknown type"
    assert "mixed model file types" in refused(make, files={"a.gguf": zipped, "b.safetensors": zipped})
    assert "may run code" in refused(make, files={"a.bin": zipped, "b.safetensors": zipped})
    assert "must be one file" in refused(make, files={"a.gguf": zipped, "b.gguf": zipped})
    assert refused(make, files={"a.gguf": EMPTY}) == f"blob not found for a.gguf (digest {EMPTY})"
    assert "too many files" in refused(make, files={f"{number}.json": EMPTY for number in range(2000)})


def test_every_beginning_of_a_gguf_file_is_refused(make, local, gguf_file, root):
    """Advisory 4."""
    content = gguf_file.read_bytes()
    header = content.index(b"token_embd")
    for end in [*range(65), *range(65, header, header // 40), len(content) - 1]:
        digest = upload(local, content[:end])
        text = refused(make, files={"m.gguf": digest})
        assert str(root) not in text
    assert local.names() == []
    assert not list(root.glob("views/*"))


@pytest.mark.parametrize("count", [2**31, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("place", [8, 16])
def test_counts_that_no_file_has_are_refused(count, place, make, local, gguf_file):
    """Advisory 7: numbers of tensors and keys."""
    content = bytearray(gguf_file.read_bytes())
    content[place : place + 8] = struct.pack("<Q", count)
    assert refused(make, files={"m.gguf": upload(local, bytes(content))})
    assert local.names() == []


FIELDS = ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length")


@pytest.mark.parametrize("value", [0, -1, 2**32 - 1, "text", [1, 2]])
@pytest.mark.parametrize("key", FIELDS)
def test_fields_that_make_no_model_are_refused(key, value, make, local, gguf_checkpoint, tokenizer, tmp_path):
    """Advisory 8."""
    path = tmp_path / "bad.gguf"
    write_gguf(path, gguf_checkpoint, "F32", {**gguf_of_tokenizer(tokenizer, "x"), f"llama.{key}": value})
    assert refused(make, files={"m.gguf": upload(local, path.read_bytes())})
    assert local.names() == []


def test_tensors_behind_the_end_of_the_file_are_refused(make, local, gguf_file, models_folder):
    """Advisory 13."""
    assert "m.gguf" not in refused(make, files={"m.gguf": upload(local, gguf_file.read_bytes()[:-32])})
    files = uploaded(local, models_folder / "chatty")
    files["model.safetensors"] = upload(local, (models_folder / "chatty" / "model.safetensors").read_bytes()[:-4])
    assert "model.safetensors" in refused(make, files=files)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_without_what_it_needs_is_refused(missing, make, local, models_folder, root):
    files = uploaded(local, models_folder / "chatty")
    del files[missing]
    text = refused(make, files=files)
    assert str(root) not in text
    assert local.names() == []


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "%2e%2e%2fx.safetensors", "a/b.safetensors"]
)
def test_an_index_that_names_other_files_is_refused(name, make, local, models_folder):
    """Advisory 14."""
    files = uploaded(local, models_folder / "chatty")
    files["part.safetensors"] = files.pop("model.safetensors")
    index = {"weight_map": {"embed": name}}
    files["model.safetensors.index.json"] = upload(local, json.dumps(index).encode())
    assert "index.json" in refused(make, files=files)


def test_nothing_of_a_refused_model_is_left(make, local, models_folder, root):
    files = uploaded(local, models_folder / "chatty")
    before = {path.name for path in (root / "blobs").iterdir()}
    files["config.json"] = upload(local, b"{}")
    refused(make, files=files)
    assert {path.name for path in (root / "blobs").iterdir()} - before == {files["config.json"].replace(":", "-")}
    assert list((root / "views").iterdir()) == []
    assert not (root / "manifests").exists()
