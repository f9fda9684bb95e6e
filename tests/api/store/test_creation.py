"""Models made from others and from files: what they share, what they say, and what is no model."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest
from support.adapters import write_adapter
from support.creations import refused, upload, uploaded
from support.gguf_files import write_gguf
from support.vocabularies import gguf_of_tokenizer

from ollampi.api.errors import ApiError
from ollampi.api.show import show_answer
from ollampi.api.store.catalog import Store
from ollampi.api.store.creation import Creation, create
from ollampi.api.store.local import LocalStore
from ollampi.api.store.operations import copy, delete, find_blob, put_blob
from ollampi.api.store.quantising import Quantiser
from ollampi.mpiruntime.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of PEFT and transformers


def test_a_folder_becomes_a_model_whose_blobs_the_next_one_shares(make, catalog, local, models_folder):
    statuses = make("mine", from_="chatty", system="S", parameters={"top_k": 3, "stop": ["a"]}, licenses=["MIT"])
    assert statuses[0] == "reading model metadata"
    assert statuses[-2:] == ["writing manifest", "success"]
    assert all(text.startswith("creating new layer sha256:") for text in statuses[1:-2])
    assert len(set(statuses)) == len(statuses)
    base, mine = catalog.find("chatty"), catalog.find("mine")
    assert mine.is_stored
    assert mine.texts.templates == base.texts.templates
    assert [(t.name, t.shape) for t in mine.tensors] == [(t.name, t.shape) for t in base.tensors]
    statuses = make("next", from_="mine", parameters={"stop": ["b"]}, licenses=["Apache"], template="{{ .Prompt }}")
    assert statuses[1].startswith("using existing layer sha256:")
    assert sum(text.startswith("creating new layer") for text in statuses) == 3
    following = catalog.find("next")
    assert following.parameters == {"top_k": 3, "stop": ["b"]}  # single options are taken over
    assert (following.system, following.licenses, following.template) == ("S", ["MIT", "Apache"], "{{ .Prompt }}")
    assert following.path == mine.path
    config = json.loads(local.blobs.path(local.read(following.name).config.digest).read_bytes())
    assert (config["model_format"], config["model_family"], config["os"]) == ("safetensors", "llama", "linux")
    assert config["rootfs"]["diff_ids"] == [str(layer.digest) for layer in local.read(following.name).layers]


def test_a_base_that_is_deleted_meanwhile_is_not_found(make, catalog, local):
    make("base", from_="chatty", system="S")
    make("other", from_="base", system="T")  # which keeps the weights
    steps = create(local, catalog, Creation("new", from_="base"))
    delete(local, catalog, "base")
    with pytest.raises(ApiError, match="model 'base' not found") as caught:
        list(steps)
    assert caught.value.status == 404
    assert catalog.get("new") is None


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"template": "{{ .Prompt"}, "template error: unclosed action"),
        ({"parameters": {"temperature": "hot"}}, 'parameters: option "temperature" must be of type float32'),
        ({"parameters": {"stop": "x"}}, 'parameters: option "stop" must be of type array'),
        ({"parameters": {"repeat_penalty": -1}}, 'parameters: option "repeat_penalty" is -1'),
    ],
)
def test_what_would_fail_every_request_is_refused(make, catalog, wanted, text):
    assert refused(make, from_="chatty", **wanted).startswith(text)
    assert catalog.get("new") is None


def test_files_of_a_folder_become_the_same_model(make, catalog, local, models_folder):
    make("up", files=uploaded(local, models_folder / "chatty"), messages=[{"role": "user", "content": "hi"}])
    assert catalog.find("up").texts.templates == catalog.find("chatty").texts.templates
    assert catalog.find("up").messages == [{"role": "user", "content": "hi"}]


def test_a_gguf_file_becomes_a_model(make, catalog, local, gguf_file):
    statuses = make("g:q8", files={"any name": upload(local, gguf_file.read_bytes())})
    assert statuses[0] == "parsing GGUF"
    assert catalog.find("G:Q8").path == local.blobs.path(local.read(catalog.find("g:q8").name).layers[0].digest)
    make("h", from_="g:q8", system="S")
    assert catalog.find("h").details["parent_model"] == "g:q8"
    assert catalog.find("h").path == catalog.find("g:q8").path


def test_a_gguf_file_in_a_folder_is_copied(local, gguf_file, tmp_path):
    catalog = Store([gguf_file], local)
    assert list(create(local, catalog, Creation("copy", from_="weights")))[-1] == {"status": "success"}
    assert catalog.find("copy").path.read_bytes() == gguf_file.read_bytes()


def test_an_adapter_is_kept_with_the_model(make, local, catalog, gguf_checkpoint, tokenizer, tmp_path):
    gguf = tmp_path / "m.gguf"
    write_gguf(gguf, gguf_checkpoint, "F32", gguf_of_tokenizer(tokenizer, "x"))
    make("base", files={"m.gguf": upload(local, gguf.read_bytes())})
    folder = write_adapter(gguf_checkpoint, tmp_path / "lora")
    make("tuned", from_="base", adapters=uploaded(local, folder))
    tuned = catalog.find("tuned")
    (adapter,) = tuned.adapters
    assert sorted(path.name for path in Path(adapter).iterdir()) == sorted(path.name for path in folder.iterdir())
    assert tuned.ref.adapters == (adapter,)
    make("twice", from_="tuned", adapters=uploaded(local, folder))
    assert [Path(path).name for path in catalog.find("twice").adapters] == ["0", "1"]
    assert "PEFT" in refused(make, from_="base", adapters={"a.gguf": upload(local, gguf.read_bytes())})
    files = uploaded(local, folder)
    files["adapter_config.json"] = upload(local, b"{}")
    assert "peft_type" in refused(make, from_="base", adapters=files)


def test_quantising_is_told_and_its_result_is_the_weights(make, local, catalog, gguf_file, models_folder, quantiser):
    make("base", files={"m.gguf": upload(local, gguf_file.read_bytes())}, system="S")
    statuses = make("small", quantiser, from_="base", quantize="q4_0")
    assert "quantizing Q8_0 model to q4_0" in statuses
    assert "converting model" not in statuses
    files = uploaded(local, models_folder / "chatty")
    for name, wanted in (("a", {"from_": "chatty"}), ("b", {"files": files})):
        statuses = make(name, quantiser, **wanted, quantize="q4_0")
        told = [text for text in dict.fromkeys(statuses) if "ing " in text and "layer" not in text]
        assert told[-3:] == ["converting model", "quantizing F32 model to q4_0", "writing manifest"]
    for name in ("small", "a", "b"):
        assert catalog.find(name).details["quantization_level"] == "Q4_0"
        assert catalog.find(name).path == catalog.find("small").path
    assert catalog.find("small").system == "S"
    assert not any(
        path.name.startswith(".") for folder in ("blobs", "views") for path in (local.root / folder).iterdir()
    )


def test_quantising_that_fails_or_is_left_alone_leaves_nothing(local, catalog, make, gguf_file, root):
    make("base", files={"m.gguf": upload(local, gguf_file.read_bytes())})
    before = sorted(root.rglob("*"))

    def fails(source, target, level, tell):
        tell(1, 2)
        raise ModelError(f"{source} has no level {level}")

    def endless(source, target, level, tell):
        while True:
            tell(1, 2)

    def full(source, target, level, tell):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    blob = catalog.find("base").path.name
    failing = Quantiser(fails, fails)
    assert refused(make, from_="base", quantize="q9", quantiser=failing) == f"{blob} has no level q9"
    assert "leave quantize out" in refused(make, from_="base", quantize="q4_0")
    with pytest.raises(ApiError, match="no space left"):
        make("new", Quantiser(full, full), from_="base", quantize="q4_0")
    steps = create(local, catalog, Creation("new", from_="base", quantize="q4_0"), Quantiser(endless, endless))
    assert "quantizing" in [next(steps), next(steps), next(steps)][2]["status"]
    steps.close()
    assert sorted(root.rglob("*")) == before


def test_a_name_that_a_given_path_has_is_refused(local, models_folder):
    catalog = Store([models_folder / "demo", models_folder], local)
    for action in (
        lambda: create(local, catalog, Creation("demo", from_="demo")),
        lambda: copy(local, catalog, "chatty", "Demo"),
    ):
        with pytest.raises(ApiError, match="was given to the server by its path") as caught:
            action()
        assert caught.value.status == 403


def test_copy_and_delete_in_ollamas_words(make, local, catalog, root):
    make("a", from_="chatty")
    copy(local, catalog, "A", "me/b:1")
    assert catalog.find("me/b:1").digest == catalog.find("a").digest
    copy(local, catalog, "chatty", "c")  # from a folder
    assert catalog.find("c").texts.templates == catalog.find("chatty").texts.templates
    for source, destination, status, text in (
        ("none", "x", 404, 'model "none" not found'),
        ("../x", "x", 400, 'source "../x" is invalid'),
        ("a", "../x", 400, 'destination "../x" is invalid'),
    ):
        with pytest.raises(ApiError) as caught:
            copy(local, catalog, source, destination)
        assert (caught.value.status, str(caught.value)) == (status, text)
    for name, status, text in (
        ("", 400, "model is required"), ("../../x", 400, 'name "../../x" is invalid'),
        ("a/../../b", 400, 'name "a/../../b" is invalid'), ("host:99/../x", 400, 'name "host:99/../x" is invalid'),
        ("none", 404, "model 'none' not found"),
        ("demo", 403, "model 'demo' is in a read-only folder; remove it there"),
    ):  # fmt: skip
        with pytest.raises(ApiError) as caught:
            delete(local, catalog, name)
        assert (caught.value.status, str(caught.value)) == (status, text)
    for name in ("a", "ME/B:1", "c"):
        delete(local, catalog, name)
    assert [path.name for path in root.rglob("*") if not path.is_dir()] == ["ollampi.lock.spare"]


def test_blobs_in_ollamas_words(local):
    digest = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    with pytest.raises(ApiError, match=f'^blob "{digest}" not found$') as caught:
        find_blob(local, digest)
    assert caught.value.status == 404
    assert put_blob(local, digest, [b"x"])

    def unread():
        raise AssertionError("the bytes of a blob that is there are not read")
        yield b""

    assert not put_blob(local, digest.upper().replace("SHA256:", "sha256-"), unread())
    assert find_blob(local, digest.replace(":", "-")) == digest
    other = f"sha256:{hashlib.sha256(b'y').hexdigest()}"
    with pytest.raises(ApiError, match=f'^digest mismatch, expected "{other}", got "{digest}"$'):
        put_blob(local, other, [b"x"])


def test_a_read_only_store_makes_nothing(root, models_folder, put_model, gguf_file):
    put_model("registry.ollama.ai/library/m/latest", ("model", gguf_file.read_bytes()))
    fixed = LocalStore(root, is_read_only=True)
    catalog = Store([models_folder], fixed)
    digest = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    for action in (
        lambda: list(create(fixed, catalog, Creation("a", from_="m"))), lambda: copy(fixed, catalog, "m", "b"),
        lambda: list(create(fixed, catalog, Creation("a", from_="demo"))), lambda: delete(fixed, catalog, "m"),
        lambda: put_blob(fixed, digest, [b"x"]),
    ):  # fmt: skip
        with pytest.raises(ApiError, match="read-only") as caught:
            action()
        assert caught.value.status == 403
    assert catalog.find("m").is_stored


def test_a_shown_template_is_the_model_s_own(make, catalog):
    """Clients send back what /api/show printed, which of most models is Jinja."""
    base = catalog.find("chatty")
    make("again", from_="chatty", template=show_answer(base, "", False)["template"])
    again = catalog.find("again")
    assert again.template == ""
    assert again.texts.chat_template == base.texts.chat_template
    assert "TEMPLATE " not in show_answer(again, "", False)["modelfile"]


def test_a_copy_of_a_model_to_itself_changes_nothing(make, local, catalog):
    copy(local, catalog, "chatty", "chatty:latest")
    assert local.names() == []
    with pytest.raises(ApiError, match="not found"):
        copy(local, catalog, "nope", "nope")
