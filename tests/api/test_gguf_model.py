"""A GGUF file is a model like a folder: listed, shown, asked and embedded under its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import ENCODERS, write_checkpoint
from support.gguf_files import write_gguf
from support.vocabularies import gguf_of_tokenizer
from tokenizers import Tokenizer

from ollampi.api.model import read_model
from ollampi.api.names import path_name
from ollampi.mpiruntime.errors import ModelError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m") / "m", vocab_size=400)


@pytest.fixture
def vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the tests' byte-level tokenizer as the metadata of a GGUF file."""
    return gguf_of_tokenizer(tokenizer, TEMPLATE)


def test_a_file_is_listed_shown_and_asked(make_client, engine, checkpoint, vocabulary, tmp_path):
    write_gguf(tmp_path / "small-q8.gguf", checkpoint, "Q8_0", {**vocabulary, "general.file_type": 7})
    client = make_client(tmp_path)
    (entry,) = client.get("/api/tags").json["models"]
    assert entry["name"] == "small-q8:latest"
    assert entry["details"]["format"] == "gguf"
    assert entry["details"]["family"] == "llama"
    assert entry["details"]["quantization_level"] == "Q8_0"
    shown = client.post("/api/show", json={"model": "small-q8"}).json
    assert shown["template"] == TEMPLATE
    assert shown["model_info"]["llama.block_count"] == 2
    assert shown["capabilities"] == ["completion"]
    engine.says("Hi")
    answer = client.post(
        "/api/chat", json={"model": "small-q8", "messages": [{"role": "user", "content": "a"}], "stream": False}
    )
    assert answer.status_code == 200, answer.json
    assert engine.requests[-1].model.path == str(tmp_path / "small-q8.gguf")


def test_a_changed_file_is_another_model_and_a_copy_is_the_same(checkpoint, vocabulary, tmp_path):
    write_gguf(tmp_path / "a.gguf", checkpoint, "Q8_0", vocabulary)
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes())
    first, second = (read_model(path_name(path), path) for path in (tmp_path / "a.gguf", tmp_path / "b.gguf"))
    assert first.digest == second.digest
    assert first.size_bytes == (tmp_path / "a.gguf").stat().st_size
    write_gguf(tmp_path / "a.gguf", checkpoint, "Q4_0", vocabulary)
    assert read_model(path_name(tmp_path / "a.gguf"), tmp_path / "a.gguf").digest != first.digest


def test_an_encoder_in_a_file_embeds_as_it_says(tmp_path, vocabulary):
    folder = write_checkpoint(tmp_path / "m", **{**ENCODERS["bert"], "vocab_size": 400})
    for number, pooling in ((1, "mean"), (2, "first"), (3, "last"), (None, "mean")):
        extra = {} if number is None else {"bert.pooling_type": number}
        write_gguf(tmp_path / "e.gguf", folder, "F32", {**vocabulary, **extra})
        model = read_model(path_name(tmp_path / "e.gguf"), tmp_path / "e.gguf")
        assert (model.pooling, model.capabilities) == (pooling, ["embedding"])


def test_a_file_without_a_tokenizer_or_cut_short_is_left_out_by_name(make_client, checkpoint, vocabulary, tmp_path):
    write_gguf(tmp_path / "bare.gguf", checkpoint)
    write_gguf(tmp_path / "whole.gguf", checkpoint, "F32", vocabulary)
    (tmp_path / "short.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:5000])
    client = make_client(tmp_path)
    assert [model["name"] for model in client.get("/api/tags").json["models"]] == ["whole:latest"]
    for name, field in (("bare", "tokenizer.ggml.model"), ("short", "")):
        with pytest.raises(ModelError, match=f"model {name}:latest: .*{field}"):
            read_model(path_name(tmp_path / f"{name}.gguf"), tmp_path / f"{name}.gguf")


def test_of_a_model_in_parts_the_first_stands_for_all(tmp_path):
    for i in (1, 2):
        assert path_name(tmp_path / f"big-0000{i}-of-00002.gguf").short == "big:latest"
    assert path_name(tmp_path / "Llama-3.2-1B-Q4_K_M.gguf").short == "Llama-3.2-1B-Q4_K_M:latest"


def test_a_model_in_parts_is_served_from_a_folder(make_client, engine, checkpoint, vocabulary, tmp_path):
    keys = {**vocabulary, "general.file_type": 7}
    write_gguf(tmp_path / "big.gguf", checkpoint, "Q8_0", keys, part=9)
    parts = sorted(path.name for path in tmp_path.glob("*.gguf"))
    assert len(parts) > 1
    assert parts[0] == f"big-00001-of-{len(parts):05d}.gguf"
    write_gguf(tmp_path / "one.gguf", checkpoint, "Q8_0", keys)
    client = make_client(tmp_path)
    entries = {entry["name"]: entry for entry in client.get("/api/tags").json["models"]}
    assert set(entries) == {"big:latest", "one:latest"}
    assert entries["big:latest"]["details"] == entries["one:latest"]["details"]
    assert entries["big:latest"]["size"] == sum((tmp_path / part).stat().st_size for part in parts)
    body = {"model": "big", "messages": [{"role": "user", "content": "a"}], "stream": False}
    answer = client.post("/api/chat", json=body)
    assert answer.json["message"]["content"] == "Hello, world"
    assert engine.requests[-1].model.path == str(tmp_path / parts[0])
    (tmp_path / parts[-1]).unlink()
    assert {entry["name"] for entry in make_client(tmp_path).get("/api/tags").json["models"]} == {"one:latest"}
