"""A bad model folder is left out or harmless: no folder can take the other models, or a thread, away."""

from __future__ import annotations

import json
import os
import struct
import time

import pytest

from ollampi.api.known_tokenizers import Tokenizers
from ollampi.api.model import read_model
from ollampi.api.store.catalog import Store
from ollampi.api.text_source import MAX_TEMPLATE_CHARS
from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.json_file import MAX_JSON_BYTES
from ollampi.mpiruntime.request import LoadedModel


def edit(name, **changes):
    """Return a change of a folder: other values in one of its JSON files."""

    def change(folder):
        old = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(old | changes))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def replace(name, make):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def big(name):
    def change(folder):
        with (folder / name).open("wb") as file:
            file.truncate(MAX_JSON_BYTES + 1)

    return change


def header(text):
    return write("model.safetensors", struct.pack("<Q", len(text)) + text)


def surrogate_tensor(folder):
    text = rb'{"\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    header(text)(folder)


def device(path):
    path.symlink_to("/dev/zero")


def dangling(path):
    path.symlink_to("/nowhere/x")


def loop(path):
    path.symlink_to(path)


REFUSED = {
    "tokenizer-missing": replace("tokenizer.json", lambda path: None),
    "tokenizer-pipe": replace("tokenizer.json", os.mkfifo),
    "tokenizer-device": replace("tokenizer.json", device),
    "tokenizer-loop": replace("tokenizer.json", loop),
    "tokenizer-big": big("tokenizer.json"),
    "pieces-big": big("tokenizer.model"),
    "vocab-big": big("vocab.json"),
    "templates-big": lambda folder: (
        os.mkdir(folder / "additional_chat_templates"),
        big("additional_chat_templates/x.jinja")(folder),
    ),
    "template-named-long": edit("tokenizer_config.json", chat_template=[{"name": "x", "template": "x" * (1 << 21)}]),
    "weights-pipe": replace("x.safetensors", os.mkfifo),
    "weights-folder": replace("x.safetensors", os.mkdir),
    "weights-device": replace("x.safetensors", device),
    "weights-dangling": replace("x.safetensors", dangling),
    "weights-empty": write("x.safetensors", b""),
    "weights-deep": header(b"[" * 100_000),
    "weights-surrogate": surrogate_tensor,
    "weights-bad-name": replace(os.fsdecode(b"\xff.safetensors"), os.mkfifo),
    "config-nan": write("config.json", b'{"model_type": "llama", "rms_norm_eps": NaN}'),
    "config-infinity": write("config.json", b'{"model_type": "llama", "rope_theta": -Infinity}'),
    "config-overflow": write("config.json", b'{"model_type": "llama", "rope_theta": 1e999}'),
    "config-long-number": write("config.json", b'{"model_type": "llama", "x": ' + b"9" * 5000 + b"}"),
    "config-surrogate": write("config.json", rb'{"model_type": "\ud800"}'),
    "config-surrogate-bytes": write("config.json", b'{"model_type": "\xed\xa0\x80"}'),
    "config-utf-16": write("config.json", '{"model_type": "llama"}'.encode("utf-16")),
    "config-deep": write("config.json", b"[" * 1_000_000),
    "config-list": write("config.json", b"[]"),
    "config-empty": write("config.json", b""),
    "config-big": big("config.json"),
    "family-number": edit("config.json", model_type=5),
    "family-long": edit("config.json", model_type="x" * 1_000_000),
    "tokens-surrogate": write("tokenizer_config.json", rb'{"bos_token": "\udfff"}'),
    "template-surrogate": write("tokenizer_config.json", rb'{"chat_template": "\ud800"}'),
    "template-long": write("chat_template.jinja", b"x" * (MAX_TEMPLATE_CHARS + 1)),
    "generation-text": write("generation_config.json", b"x"),
}
HARMLESS = {
    "template-list-odd": edit("tokenizer_config.json", chat_template=[{"name": [1], "template": {}}, 5, {"name": "x"}]),
    "template-number": edit("tokenizer_config.json", chat_template=5),
    "template-syntax": edit("tokenizer_config.json", chat_template="{% for %}"),
    "template-not-utf-8": write("chat_template.jinja", b"\xff{{ messages }}"),
    "template-pipe": replace("chat_template.jinja", os.mkfifo),
    "tokens-odd": edit("tokenizer_config.json", bos_token=[1], eos_token={"content": 5}),
    "eos-huge": edit("config.json", eos_token_id=2**70, bos_token_id=[-1, 2**31, True, "x"]),
    "eos-list": edit("generation_config.json", eos_token_id=[None, 2**70, 1.5, [3]], bos_token_id={}),
    "values-odd": edit("config.json", hidden_size=[1], rope_theta={}, num_hidden_layers=10**4000, vocab_size="x"),
    "context-huge": edit("config.json", max_position_embeddings=10**100, text_config=7),
    "added-number": edit("tokenizer.json", added_tokens=5),
    "added-odd": edit("tokenizer.json", added_tokens=[5, {"id": [1], "content": 7}, {"id": 2}, {"id": "x"}]),
    "vocab-list": edit("tokenizer.json", model={"type": "Unigram", "vocab": [["a", 1.0]]}),
    "vocab-odd": edit("tokenizer.json", model={"type": [], "vocab": {"a": "b", "c": 1, "d": None}, "merges": 5}),
    "merges-odd": edit("tokenizer.json", model={"vocab": 5, "merges": [5, "a b", ["a", "b"], [1, [2]], None]}),
    "tokenizer-number": edit("tokenizer.json", model=5),
    "tokenizer-panics": edit("tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "license-pipe": replace("LICENSE", os.mkfifo),
    "pieces-pipe": replace("tokenizer.model", os.mkfifo),
    "templates-file": write("additional_chat_templates", b"x"),
    "special-odd": edit(
        "tokenizer_config.json", additional_special_tokens={"a": 1}, extra_special_tokens=[5], x_token=[1]
    ),
    "added-tokens-odd": write("added_tokens.json", b"5"),
    "time-far": lambda folder: os.utime(folder / "config.json", (0, 10**13)),
    "time-before": lambda folder: os.utime(folder / "config.json", (0, -(10**9))),
}


def folders(make_model, tmp_path, change):
    """Return a folder with a good and a bad model."""
    models = tmp_path / "My Models"
    make_model(models / "good")
    change(make_model(models / "bad", "{{ messages }}"))
    return models


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_bad_folders_are_left_out(make_model, make_client, tmp_path, change):
    models = folders(make_model, tmp_path, change)
    store = Store([models])
    store.find("good")
    started = time.thread_time()
    with pytest.raises(ModelError) as caught:
        store.find("bad")
    assert time.thread_time() - started < 0.1
    assert str(caught.value).startswith("model bad:latest")
    assert str(tmp_path) not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert [model.full_name for model in store.models()] == ["good:latest"]
    assert store.at(str(models / "bad")) is None
    client = make_client(models)
    assert [entry["name"] for entry in client.get("/api/tags").json["models"]] == ["good:latest"]
    response = client.post("/api/show", json={"model": "bad"})
    assert response.status_code == 500
    assert "My Models" not in response.json["error"]


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_odd_folders_are_harmless(make_model, make_client, engine, tmp_path, change):
    models = folders(make_model, tmp_path, change)
    client = make_client(models)
    engine.models = [LoadedModel(f"{name}:latest", str(models / name), 1, 0, 64, None) for name in ("good", "bad")]
    assert len(client.get("/api/tags").json["models"]) == 2
    assert len(client.get("/api/ps").json["models"]) == 2
    for verbose in (False, True):
        response = client.post("/api/show", json={"model": "bad", "verbose": verbose})
        assert response.status_code == 200, response.text
        json.loads(response.text, parse_constant=pytest.fail)
    body = {"model": "bad", "messages": [{"role": "user", "content": "x"}], "stream": False}
    response = client.post("/api/chat", json=body)
    assert response.status_code == 200 or "the model's" in response.json["error"]
    assert all(type(n) is int and 0 <= n < 2**31 for request in engine.requests for n in request.stop_tokens)


def test_a_bad_folder_is_logged_once_for_each_state(make_model, tmp_path, caplog):
    models = folders(make_model, tmp_path, write("config.json", b"["))
    store = Store([models])
    for _ in range(3):
        store.models()
    assert [record.getMessage() for record in caplog.records] == [
        "a model is left out: model bad:latest: config.json is not valid JSON in UTF-8; copy the file again"
    ]
    (models / "bad" / "config.json").write_bytes(b"[[")
    store.models()
    assert len(caplog.records) == 2
    (models / "bad" / "config.json").write_bytes((models / "good" / "config.json").read_bytes())
    assert len(store.models()) == 2


def test_an_unforeseen_error_leaves_one_model_out(make_model, tmp_path, monkeypatch, caplog):
    models = folders(make_model, tmp_path, lambda folder: None)

    def fails(name, path):
        if path.name == "bad":
            raise ZeroDivisionError
        return read_model(name, path)

    monkeypatch.setattr("ollampi.api.store.catalog.read_model", fails)
    store = Store([models])
    for _ in range(3):
        assert [model.full_name for model in store.models()] == ["good:latest"]
    assert len(caplog.records) == 1
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        store.find("bad")


def test_an_error_that_may_pass_is_not_kept(make_model, tmp_path, monkeypatch):
    models = folders(make_model, tmp_path, lambda folder: None)
    store = Store([models])

    def broken(path):
        raise CheckpointError(f"{path} cannot be read: broken") from OSError(5, "broken")

    with monkeypatch.context() as patch:
        patch.setattr("ollampi.api.model.read_header_bytes", broken)
        with pytest.raises(ModelError, match=r"^model good:latest: model.safetensors cannot be read: broken$"):
            store.find("good")
    assert store.find("good").full_name == "good:latest"


def test_folder_names_that_are_not_utf_8(make_model, make_client, tmp_path):
    make_model(tmp_path / "good")
    (tmp_path / "x").mkdir()
    make_model(tmp_path / "x" / "m").rename(tmp_path / os.fsdecode(b"b\xffd"))
    assert [entry["name"] for entry in make_client(tmp_path).get("/api/tags").json["models"]] == ["good:latest"]
    with pytest.raises(ModelError, match="the folder's path is not valid UTF-8"):
        Store([tmp_path]).find("b-d")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_nobody_may_read(make_model, tmp_path):
    make_model(tmp_path / "good")
    make_model(tmp_path / "bad").chmod(0)
    assert [model.full_name for model in Store([tmp_path]).models()] == ["good:latest"]


def test_a_tokenizer_that_cannot_be_used_is_a_model_error(make_model, tmp_path):
    special = {"single": [{"SpecialToken": {"id": "zz", "type_id": 0}}], "pair": [], "special_tokens": {}}
    models = folders(
        make_model, tmp_path, edit("tokenizer.json", post_processor={"type": "TemplateProcessing"} | special)
    )
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be used"):
        Tokenizers().get(Store([models]).find("bad"))
