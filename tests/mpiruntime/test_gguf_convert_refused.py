"""What GGUF cannot hold exactly is refused before a file is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import ENCODERS, FAMILIES
from support.gguf_folders import PIECES, VOCAB, Change, changed, framed, quiet, write_folder, write_pieces
from support.vocabularies import byte_tokenizer, train_pieces
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.gguf_convert import convert


def _retokenised(change: Callable[[Tokenizer], None]) -> Change:
    def work(folder: Path) -> None:
        tokenizer = byte_tokenizer()
        change(tokenizer)
        tokenizer.save(str(folder / "tokenizer.json"))

    return work


def _unigram(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(train_pieces(**{**PIECES, "model_type": "unigram", "vocab_size": 390}))


def _odd_split(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("odd"), "isolated")


def _blank_first(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def _lower(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


def _strips(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True)])


def _two_before(tokenizer: Tokenizer) -> None:
    framed(tokenizer, "<|bos|> <|im_end|> $A")


def _extra_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, "model.layers.0.odd.weight": torch.zeros(2, 2)}, folder / "model.safetensors")


def _float8(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"] = state["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    save_file(state, folder / "model.safetensors")


REFUSED: dict[str, tuple[dict[str, Any], Change | None, str]] = {
    "encoder": (ENCODERS["bert"], None, r"bert is not converted to GGUF; known are: llama, mistral"),
    "dynamic rope": (FAMILIES["dynamic_rope"], None, "rope type 'dynamic' has no place"),
    "Phi": (FAMILIES["phi"], None, "phi is not converted to GGUF"),
    "biases of Command R": (
        {**FAMILIES["cohere_biases"], "tie_word_embeddings": True},
        None,
        "qkv_bias is True, .* can only say False",
    ),
    "head of Command R": (FAMILIES["cohere_plus"], None, "tied_embeddings is False, .* can only say True"),
    "windows of Qwen 2": (FAMILIES["qwen2"], None, "window of layer 1 is 6, .* can only say None; serve the folder"),
    "layers without experts": (FAMILIES["qwen3_moe"], None, "has_experts of layer 1 is False|ffn_gate_inp|experts"),
    "scale of Gemma 2": (FAMILIES["gemma2"], None, r"attention_scale is 0\.204.*can only say 0\.25"),
    "activation": ({"hidden_act": "gelu"}, None, "activation is gelu, .* can only say silu"),
    "own split": ({}, _retokenised(_odd_split), "cuts words by .'odd'.*no name that is known"),
    "blank first": ({}, _retokenised(_blank_first), "cuts words by .*add_prefix_space"),
    "normaliser": ({}, _retokenised(_lower), "changes texts by Lowercase; GGUF files can say NFC alone"),
    "strips": ({}, _retokenised(_strips), r"'<\|end\|>' takes blanks beside it"),
    "frame": ({}, _retokenised(_two_before), r"tokens \[380, 381\] and \[\] stand around texts"),
    "unigram": ({}, _unigram, "holds of SentencePiece's tokenizers BPE alone"),
    "few rows": ({"vocab_size": 300}, None, "the tokenizer has ids up to 382, vocab_size in config.json is 300"),
    "no tokenizer": ({}, lambda folder: (folder / "tokenizer.json").unlink(), "the folder has no tokenizer"),
    "tensor": ({}, _extra_tensor, r"'model\.layers\.0\.odd\.weight' .*cannot be in a GGUF file of llama"),
    "float8": ({}, _float8, r"up_proj\.weight' \(F8_E4M3.*convert a checkpoint of plain matrices"),
    "ends": ({}, lambda f: changed(f, "generation_config.json", eos_token_id=[1, 2, 3, 4]), "a GGUF file can name 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_hold_is_refused_before_it_is_written(tmp_path: Path, name: str) -> None:
    changes, change, message = REFUSED[name]
    folder = write_folder(tmp_path / "m", **{"vocab_size": VOCAB, **changes})
    if change is not None:
        change(folder)
    with pytest.raises(ModelError, match=message):
        convert(folder, tmp_path / "m.gguf", quiet)
    assert not (tmp_path / "m.gguf").exists()


def test_pieces_with_a_blank_before_the_first_word_alone_are_refused(tmp_path: Path) -> None:
    folder = write_pieces(tmp_path / "m", True, False)
    (folder / "tokenizer_config.json").write_text(json.dumps({"legacy": False}))
    with pytest.raises(ModelError, match=r"from a GGUF file the text .* would be the tokens .*; serve the folder"):
        convert(folder, tmp_path / "m.gguf", quiet)


def test_a_file_that_shrinks_meanwhile_is_named_and_nothing_stays(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    weights = folder / "model.safetensors"

    def cut(done: int, total: int) -> None:
        weights.write_bytes(weights.read_bytes()[:2000])

    with pytest.raises(CheckpointError, match=r"model\.safetensors ends within tensor"):
        convert(folder, tmp_path / "m.gguf", cut)
    assert not (tmp_path / "m.gguf").exists()
