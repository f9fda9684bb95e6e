"""What a GGUF file says of its model is what the config.json said that it was made from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import PROMPT, reference, write_checkpoint
from support.gguf_files import MODELS, add_value, finish, write_gguf
from torch import Tensor
from transformers import AutoModel

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.gguf_config import gguf_config, gguf_heads
from ollampi.mpiruntime.gguf_header import read_gguf
from ollampi.mpiruntime.model_config import parse_config, read_config
from ollampi.mpiruntime.rope import Rope
from ollampi.mpiruntime.rotary import inverse_frequencies


@torch.no_grad()
def outputs(folder: Path) -> Tensor:
    """Return transformers' hidden states [T, D] for a prompt, and for a longer one that has other divisors of rope."""
    model = reference(folder, AutoModel)
    prompts = [token % 100 for token in PROMPT], [token % 100 for token in PROMPT * 12]
    found: Tensor = torch.cat([model(torch.tensor([tokens])).last_hidden_state[0] for tokens in prompts])
    return found


def as_folder(path: Path, held: dict[str, Tensor], folder: Path) -> Path:
    """Write what a GGUF file says and holds as a Hugging Face folder."""
    values = gguf_config(read_gguf(path))
    if values.get("norms_with_offset"):
        held = {name: v - 1 if name.endswith("norm.weight") else v for name, v in held.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 0, **values}))
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_transformers_computes_the_same_from_it(tmp_path: Path, model: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **MODELS[model])
    held = write_gguf(tmp_path / "m.gguf", folder)
    again = as_folder(tmp_path / "m.gguf", held, tmp_path / "again")
    torch.testing.assert_close(outputs(again), outputs(folder), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_our_parser_makes_the_same_of_it(tmp_path: Path, model: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **MODELS[model])
    write_gguf(tmp_path / "m.gguf", folder)
    ours, theirs = parse_config(gguf_config(read_gguf(tmp_path / "m.gguf")), "x"), read_config(folder)
    assert ours.norm_eps == pytest.approx(theirs.norm_eps, rel=1e-7)
    assert ours.norm_offset == 0
    differing = {"norm_eps", "norm_offset", "layers"}
    assert {k: v for k, v in vars(ours).items() if k not in differing} == {
        k: v for k, v in vars(theirs).items() if k not in differing
    }
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        assert (layer.window, layer.has_experts) == (other.window, other.has_experts)
        if layer.rope is not None and other.rope is not None:
            torch.testing.assert_close(frequencies(layer.rope), frequencies(other.rope))
            assert layer.rope.magnitude == pytest.approx(other.rope.magnitude)


def frequencies(rope: Rope) -> Tensor:
    """Return the frequencies up to and beyond the trained context."""
    contexts = rope.original_context, rope.original_context + 1
    return torch.cat([inverse_frequencies(rope, context) for context in contexts])


def written(path: Path, changes: dict[str, Any], architecture: str = "llama") -> Path:
    """Write a header of a small Llama with some keys changed, left out (None) or added."""
    keys: dict[str, Any] = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**keys, **changes}.items():
        if value is not None:
            add_value(writer, f"{architecture}.{key}" if "general" not in key else key, value)
    shapes = {"token_embd": (64, 32), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.ffn_up": (48, 32)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    finish(writer)
    return path


_KINDS = ["sliding_attention", "full_attention"]
COUNTS = ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length", "feed_forward_length")


OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.dimension_count")
WRONG = [0, -1, 2**32 - 1, "4", [4, 5], 1.5, True]
CASES = [
    *((key, value) for key in (*COUNTS, "context_length", *OPTIONAL[1:]) for value in WRONG),
    *((key, None) for key in (*COUNTS, "context_length") if key not in OPTIONAL),
]


@pytest.mark.parametrize(("key", "value"), CASES)
def test_numbers_that_cannot_be_are_refused_by_file_and_key(tmp_path: Path, key: str, value: Any) -> None:
    path = written(tmp_path / "m.gguf", {key: value})
    with pytest.raises(ModelError) as caught:
        gguf_config(read_gguf(path))
    assert str(path) in str(caught.value)
    assert f"llama.{key}" in str(caught.value)


@pytest.mark.parametrize("value", [7, 1000])
@pytest.mark.parametrize("key", [*COUNTS, *OPTIONAL[1:]])
def test_numbers_that_contradict_the_tensors_are_refused(tmp_path: Path, key: str, value: int) -> None:
    path = written(tmp_path / "m.gguf", {key: value})
    with pytest.raises(ModelError, match=r"m\.gguf: llama\."):
        gguf_config(read_gguf(path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention.layer_norm_rms_epsilon": 0.0}, "layer_norm_rms_epsilon is 0.0; it must be a number above 0"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon is nan"),
        ({"attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"rope.freq_base": -1.0}, "rope.freq_base is -1.0"),
        ({"rope.freq_base": "x"}, "rope.freq_base is 'x'"),
        ({"rope.scaling.type": "odd"}, "rope.scaling.type is 'odd'; known are: none, linear, yarn, longrope"),
        ({"rope.scaling.type": 3}, "rope.scaling.type is 3; it must be a string"),
        ({"rope.scaling.type": "longrope"}, "rope_factors_long.weight"),
        ({"attention.value_length": 4}, "value_length is 4; it must be equal to that of keys, 8"),
        ({"attention.causal": False}, "attention.causal is False; of llama only decoders"),
        ({"attention.causal": 1}, "attention.causal is 1; it must be true or false"),
        ({"expert_count": 2, "expert_used_count": 3}, "expert_used_count is 3; there are 2 experts"),
        ({"expert_count": 2}, "expert_used_count is missing"),
        ({"pooling_type": 9}, "pooling_type is 9"),
        ({"attention.head_count_kv": 3}, "head_count_kv is 3; head_count 4 must be a multiple of it"),
    ],
)
def test_other_values_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = written(tmp_path / "m.gguf", changes)
    with pytest.raises(ModelError) as caught:
        gguf_config(read_gguf(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_counts_that_are_the_same_for_all_layers_may_be_lists(tmp_path: Path) -> None:
    file = read_gguf(written(tmp_path / "m.gguf", {"attention.head_count_kv": [2, 2], "pooling_type": 3}))
    assert parse_config(gguf_config(file), "x").num_kv_heads == 2
    assert gguf_heads(file) == (4, 2)
    assert gguf_config(file)["pooling"] == "last"


def test_an_architecture_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", {}, "mamba")
    with pytest.raises(ModelError, match=r"m\.gguf: general.architecture 'mamba' is not supported; known are: llama, "):
        gguf_config(read_gguf(path))


def test_a_file_without_its_tensors_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    finish(writer)
    with pytest.raises(ModelError, match=r"token_embd\.weight"):
        gguf_config(read_gguf(tmp_path / "m.gguf"))


@pytest.mark.parametrize("length", [3, 5])
def test_divisors_must_be_as_many_as_pairs(tmp_path: Path, length: int) -> None:
    folder = write_checkpoint(tmp_path / "m")
    path = tmp_path / "m.gguf"
    write_gguf(path, folder)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "n.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith("llama."):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.add_tensor("rope_freqs.weight", np.ones(length, np.float32))
    finish(writer)
    with pytest.raises(ModelError, match=f"4 pairs are turned, rope_freqs.weight has {length} divisors"):
        gguf_config(read_gguf(tmp_path / "n.gguf"))


@pytest.mark.parametrize(
    ("model", "keys", "values"),
    [
        ("qwen3_moe", {"qwen3moe.norm_top_k_prob": False}, {"norm_topk_prob": False, "moe_intermediate_size": 64}),
        ("qwen3_moe", {"qwen3moe.expert_feed_forward_length": None}, {"moe_intermediate_size": 64}),
        ("gemma2", {"gemma2.final_logit_softcapping": 0.0}, {"final_logit_softcapping": None}),
        ("gemma2", {"gemma2.attn_logit_softcapping": None}, {"attn_logit_softcapping": 50.0}),
        ("gemma3", {"gemma3.attention.sliding_window_pattern": 2}, {"layer_types": [*_KINDS * 3, _KINDS[0]]}),
        (
            "gemma3",
            {"gemma3.attention.sliding_window_pattern": [True, False] * 3 + [True]},
            {"layer_types": [*_KINDS * 3, _KINDS[0]]},
        ),
        ("gemma3", {"gemma3.rope.freq_base_swa": None}, {"rope_local_base_freq": 1e4}),
        (
            "gemma3",
            {"gemma3.rope.freq_base_swa": None, "gemma3.rope.local.freq_base": 5e3},
            {"rope_local_base_freq": 5e3},
        ),
        ("phi3", {"phi3.rope.scaling.original_context_length": 0}, {"original_max_position_embeddings": 256}),
        ("llama2", {"llama.rope.scale_linear": 4.0}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ("llama2", {"llama.attention.head_count_kv": None}, {"num_key_value_heads": 8}),
        ("bert", {"bert.pooling_type": 2}, {"pooling": "cls"}),
    ],
)
def test_what_converters_leave_out_or_say_otherwise(
    tmp_path: Path, model: str, keys: dict[str, Any], values: dict[str, Any]
) -> None:
    write_gguf(tmp_path / "m.gguf", write_checkpoint(tmp_path / "m", **MODELS[model]))
    file = read_gguf(tmp_path / "m.gguf")
    changed = {key: value for key, value in {**file.metadata, **keys}.items() if value is not None}
    assert gguf_config(replace(file, metadata=changed)).items() >= values.items()


@pytest.mark.parametrize(
    ("layers", "scaling", "cap"),
    [(26, None, None), (34, {"rope_type": "linear", "factor": 8.0}, 30.0), (7, None, 30.0)],
)
def test_first_releases_of_gemma_3_are_mended(
    tmp_path: Path, layers: int, scaling: dict[str, Any] | None, cap: float | None
) -> None:
    """As Ollama does: by the number of layers it knows files that it made without the scaling of rope."""
    model = {**MODELS["gemma3"], "num_hidden_layers": layers, "rope_scaling": None}
    folder = write_checkpoint(tmp_path / "m", **model)
    write_gguf(tmp_path / "m.gguf", folder, extra={"gemma3.final_logit_softcapping": 30.0})
    values = gguf_config(read_gguf(tmp_path / "m.gguf"))
    assert values.get("rope_scaling") == scaling
    assert values["final_logit_softcapping"] == cap
