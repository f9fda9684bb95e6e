"""A folder that is converted computes the same logits and makes the same tokens; what cannot is refused by field."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import FAMILIES, PROMPT, reference_logits
from support.gguf_files import MODELS, write_gguf
from support.gguf_folders import DECODERS, VOCAB, changed, framed, quiet, write_folder, write_pieces
from support.vocabularies import byte_tokenizer, random_texts
from support.worlds import world_logits
from tokenizers import Tokenizer, pre_tokenizers

from ollampi.mpiruntime.gguf_convert import convert
from ollampi.mpiruntime.gguf_header import read_gguf
from ollampi.mpiruntime.gguf_quantise import requantise
from ollampi.mpiruntime.gguf_tokenizer import GgufVocabulary
from ollampi.mpiruntime.tokenizer_folder import tokenizer_of


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_computes_the_same_from_a_converted_file(tmp_path: Path, family: str) -> None:
    folder = write_folder(tmp_path / "m", **{**MODELS[family], "vocab_size": VOCAB})
    convert(folder, tmp_path / "m.gguf", quiet)
    expected = reference_logits(folder, PROMPT)
    for size in (1, 3):
        assert (world_logits(size, tmp_path / "m.gguf", PROMPT, [9, 1, 7]) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("family", DECODERS)
def test_files_are_those_that_the_gguf_package_writes(tmp_path: Path, family: str) -> None:
    folder = write_folder(tmp_path / "m", **{**MODELS[family], "vocab_size": VOCAB})
    convert(folder, tmp_path / "ours.gguf", quiet)
    write_gguf(tmp_path / "theirs.gguf", folder)
    ours, theirs = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("ours", "theirs"))
    found, wanted = ({each.name: each for each in reader.tensors} for reader in (ours, theirs))
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert (found[name].tensor_type, list(found[name].shape)) == (tensor.tensor_type, list(tensor.shape)), name
        np.testing.assert_allclose(found[name].data, tensor.data, rtol=2e-6, err_msg=name)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF.") and key != "general.name" and field.contents() != 0:
            other = ours.get_field(key)
            assert other is not None, key
            assert other.types == field.types, key
            value = field.contents()
            assert other.contents() == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrices_keep_their_type_and_vectors_are_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_folder(tmp_path / "m", **{**FAMILIES["biases"], "vocab_size": VOCAB})
    state = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    convert(folder, tmp_path / "m.gguf", quiet)
    name = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    file = read_gguf(tmp_path / "m.gguf")
    for tensor in file.tensors.values():
        assert tensor.blocks.name == (name if len(tensor.shape) > 1 else "F32")
    assert file.metadata["general.file_type"] == {"BF16": 32, "F16": 1}[name]
    expected = reference_logits(folder, PROMPT)
    assert (world_logits(2, tmp_path / "m.gguf", PROMPT, [17]) - expected).abs().max() <= 1e-4


def test_a_model_in_several_files_that_sees_too_is_converted_without_its_eyes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", shards=True, **{**MODELS["gemma3"], "vocab_size": VOCAB})
    plain = reference_logits(folder, PROMPT)
    for file in folder.glob("*.safetensors"):
        state = {f"language_model.{name}": tensor for name, tensor in load_file(file).items()}
        save_file(state, file, {"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {f"language_model.{name}": file for name, file in index["weight_map"].items()}
    index["weight_map"]["vision_tower.a.weight"] = "eyes.safetensors"
    save_file({"vision_tower.a.weight": torch.zeros(2, 2)}, folder / "eyes.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    own = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": own}))
    convert(folder, tmp_path / "m.gguf", quiet)
    assert (world_logits(1, tmp_path / "m.gguf", PROMPT, [17]) - plain).abs().max() <= 1e-4


def test_a_converted_file_is_quantised_and_loaded(tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32}
    folder = write_folder(tmp_path / "m", **{**MODELS["llama3"], **wide, "vocab_size": VOCAB})
    convert(folder, tmp_path / "m.gguf", quiet)
    requantise(tmp_path / "m.gguf", tmp_path / "q.gguf", "q8_0", quiet)
    found, exact = world_logits(2, tmp_path / "q.gguf", PROMPT, [17]), reference_logits(folder, PROMPT)
    assert (found - exact).abs().mean() < 0.1 * exact.abs().mean()
    assert GgufVocabulary(read_gguf(tmp_path / "q.gguf").metadata).templates() == {
        "default": "{{ messages[0].content }}"
    }


def test_copies_of_a_folder_become_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(write_folder(tmp_path / name, **FAMILIES["mixtral"]), tmp_path / f"{name}.gguf", quiet)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    folder, calls = write_folder(tmp_path / "m", **FAMILIES["mixtral"]), list[tuple[int, int]]()
    convert(folder, tmp_path / "m.gguf", lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] == sum(t.nbytes for t in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize(
    "name", ["gpt-2", "starcoder", "llama-bpe", "qwen2", "qwen35", "deepseek-r1-qwen", "tekken", "gpt-4o", "dbrx"]
)
def test_byte_level_tokens_are_those_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "m", byte_tokenizer(name))
    convert(folder, tmp_path / "m.gguf", quiet)
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.pre"] == name
    reference, found = Tokenizer.from_file(str(folder / "tokenizer.json")), GgufVocabulary(metadata).tokenizer()
    for text in [*random_texts(300), "a<|im_end|>b <tool> <|bos|>"]:
        ids = reference.encode(text).ids
        assert found.encode(text).ids == ids, text
        assert found.decode(ids, False) == reference.decode(ids, False)


def as_published(digits: bool) -> Tokenizer:
    """Return the tokenizer cut by the library's own cutters, as in tokenizer.json files of GPT-2 and StarCoder."""
    tokenizer = byte_tokenizer("starcoder" if digits else "gpt-2")
    cuts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


@pytest.mark.parametrize(("digits", "name"), [(False, "gpt-2"), (True, "starcoder")])
def test_cuts_are_known_in_other_words_too(tmp_path: Path, digits: bool, name: str) -> None:
    folder = write_folder(tmp_path / "m", as_published(digits))
    convert(folder, tmp_path / "m.gguf", quiet)
    assert read_gguf(tmp_path / "m.gguf").metadata["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize("single", ["$A", "<|bos|> $A", "<|bos|> $A <|im_end|>", "$A <|im_end|>"])
def test_what_stands_around_texts_is_kept(tmp_path: Path, single: str) -> None:
    folder = write_folder(tmp_path / "m", framed(byte_tokenizer("llama-bpe"), single), {"bos_token": "<|bos|>"})
    convert(folder, tmp_path / "m.gguf", quiet)
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert GgufVocabulary(metadata).tokenizer().encode("a b").ids == reference.encode("a b").ids
    assert metadata["tokenizer.ggml.bos_token_id"] == reference.token_to_id("<|bos|>")
    assert metadata["tokenizer.ggml.eos_token_id"] == reference.token_to_id("<|im_end|>")
    assert len(metadata["tokenizer.ggml.tokens"]) == VOCAB  # type: ignore[arg-type]


@pytest.mark.parametrize("json_too", [False, True], ids=["model", "json"])
@pytest.mark.parametrize("blank", [True, False], ids=["blank", "none"])
def test_pieces_are_those_of_the_folder(tmp_path: Path, blank: bool, json_too: bool) -> None:
    folder = write_pieces(tmp_path / "m", blank, json_too)
    convert(folder, tmp_path / "m.gguf", quiet)
    reference = tokenizer_of(folder)
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.add_space_prefix"] is blank
    found = GgufVocabulary(metadata).tokenizer()
    for text in [*random_texts(300, seed=4), "a<s>b</s> c"]:
        assert found.encode(text).ids == reference.encode(text).ids, text


def test_named_templates_and_several_ends_are_kept(tmp_path: Path) -> None:
    entries = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    folder = write_folder(tmp_path / "m", config={"chat_template": entries})
    changed(folder, "generation_config.json", eos_token_id=[381, 7])
    convert(folder, tmp_path / "m.gguf", quiet)
    vocabulary = GgufVocabulary(read_gguf(tmp_path / "m.gguf").metadata)
    assert vocabulary.templates() == {"default": "d", "tool_use": "t"}
    assert vocabulary.ends == [381, 7]


_CHILD = """
import json, sys, tracemalloc
from pathlib import Path
from ollampi.mpiruntime.gguf_convert import convert
tracemalloc.start()
convert(Path(sys.argv[1]), Path(sys.argv[2]), lambda done, total: None)
print(json.dumps([tracemalloc.get_traced_memory()[1], "torch" in sys.modules, "gguf" in sys.modules]))
"""


def test_memory_stays_flat_and_torch_away(tmp_path: Path) -> None:
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1}
    folder = write_folder(tmp_path / "m", **{**FAMILIES["llama3"], **wide, "vocab_size": VOCAB})
    out = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder), str(tmp_path / "t.gguf")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    most, torch_there, gguf_there = json.loads(out.stdout)
    assert (folder / "model.safetensors").stat().st_size > 60 << 20
    assert most < 16 << 20
    assert not torch_there
    assert not gguf_there
