"""Check names, safetensors headers, and what the store makes of model folders."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from ollampi.api.details import human_number
from ollampi.api.errors import ApiError
from ollampi.api.model import read_model
from ollampi.api.names import folder_name, parse_name
from ollampi.api.store.catalog import Store
from ollampi.mpiruntime.errors import ModelError


@pytest.mark.parametrize(
    ("text", "short", "full"),
    [
        ("demo", "demo:latest", "registry.ollama.ai/library/demo:latest"),
        ("Demo:7b-Q4", "Demo:7b-Q4", "registry.ollama.ai/library/Demo:7b-Q4"),
        ("me/demo", "me/demo:latest", "registry.ollama.ai/me/demo:latest"),
        ("host.example:99/me/demo:1", "host.example:99/me/demo:1", "host.example:99/me/demo:1"),
    ],
)
def test_names(text, short, full):
    name = parse_name(text)
    assert name is not None
    assert (name.short, name.full) == (short, full)


@pytest.mark.parametrize(
    "text",
    ["", ":", "a:", ":b", "/", "a/", "/a", "a/b/c/d", "..", "../x", "a/../../b", "a b", "a\0", "a\n", "é", "-a", ".a",
     "a" * 81, "a" * 10_000_000, "a:b:c", "%2e%2e", "a\\b", "host:99/../x", "\ud800"],
    ids=lambda text: ascii(text)[:20],
)  # fmt: skip
def test_hostile_names(text, store):
    assert parse_name(text) is None
    with pytest.raises(ApiError) as caught:
        store.find(text)
    assert caught.value.status == 404
    assert len(str(caught.value)) < 300


def test_lookup_ignores_case_and_defaults(store):
    for text in ("demo", "DEMO", "demo:latest", "library/demo", "registry.ollama.ai/library/Demo:LATEST"):
        assert store.find(text).full_name == "demo:latest"
    for text in ("demo:other", "me/demo", "example.com/library/demo"):
        with pytest.raises(ApiError, match="not found"):
            store.find(text)


def test_folder_names():
    assert folder_name("Llama-3.1 (8B)").short == "Llama-3.1--8B:latest"
    assert folder_name("demo:small").short == "demo:small"
    assert folder_name("...") is None


def test_one_model_folder_or_a_folder_of_them(models_folder, tmp_path):
    assert [m.full_name for m in Store([models_folder / "demo"]).models()] == ["demo:latest"]
    assert len(Store([models_folder, models_folder / "demo", tmp_path / "absent"]).models()) == 3


def test_digest_changes_with_the_content_only(make_model, tmp_path):
    first = read_model(folder_name("a"), make_model(tmp_path / "a"))
    again = read_model(folder_name("b"), make_model(tmp_path / "b"))
    other = read_model(folder_name("c"), make_model(tmp_path / "c", context=128))
    assert first.digest == again.digest != other.digest


def test_other_weights_under_the_same_header_have_another_digest(make_model, tmp_path):
    folder = make_model(tmp_path / "a")
    first = read_model(folder_name("a"), folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert read_model(folder_name("a"), folder).digest != first.digest


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"])
def test_what_prompts_depend_on_is_in_the_digest(make_model, tmp_path, name):
    folder = make_model(tmp_path / "a")
    first = read_model(folder_name("a"), folder)
    (folder / name).write_text('{"bos_token": "<s>"}')
    assert read_model(folder_name("a"), folder).digest != first.digest


def test_changes_show_at_once(make_model, tmp_path):
    folder = make_model(tmp_path / "demo")
    store = Store([tmp_path])
    model = store.find("demo")
    assert store.find("demo") is model
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    (folder / "chat_template.jinja").write_text("{{ messages }} <think>")
    model = store.find("demo")
    assert (model.context_length, model.texts.eos_token_ids) == (4096, [3, 4])
    assert model.capabilities == ["completion", "thinking"]


def test_a_folder_without_tokenizer_is_refused_when_it_is_read(make_model, tmp_path):
    folder = make_model(tmp_path / "my model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        ModelError, match=r"model my-model:latest: the folder has no tokenizer; of tokenizer.json, "
    ) as caught:
        read_model(folder_name("my model"), folder)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "level"), [({"quant_method": "awq", "bits": 4}, "AWQ 4-bit"), ({}, "I32"), (5, "I32")]
)
def test_packed_numbers_count_as_parameters(make_model, tmp_path, told, level):
    folder = make_model(tmp_path / "demo")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    words = torch.zeros(64, 128, dtype=torch.int32)
    save_file({"q.qweight": words, "q.scales": torch.ones(2, 1024)}, folder / "model.safetensors")
    details = read_model(folder_name("demo"), folder).details
    assert details["quantization_level"] == level
    assert details["parameter_size"] == ("67.6K" if level == "AWQ 4-bit" else "10.2K")


def test_human_numbers():
    assert [human_number(n) for n in (0, 999, 5_600_000, 8_030_261_248)] == ["0", "999", "5.6M", "8.0B"]
