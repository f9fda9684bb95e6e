"""What families differ in matters, and is computed as transformers does, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import (
    ENCODERS,
    FAMILIES,
    PROMPT,
    reference_greedy,
    reference_hidden,
    reference_logits,
    write_checkpoint,
)
from support.worlds import embed, generate, lead, load_and_compute, load_message, run_engine, world_logits

from ollampi.kernels import native
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.families import FAMILIES as FAMILY_ROWS
from ollampi.mpiruntime.model_config import parse_config, read_config
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.thread_world import run_threads

PIECES = [9, 1, 5, 1, 1]
SMALL = EngineSettings(context_length=64, cache_tokens=128, block_size=4, max_step_tokens=7)


def changed(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes a value away."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_attends_alike_where_there_is_no_library(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "m", **FAMILIES[family])
    monkeypatch.setattr(native, "library", lambda: None)
    found = run_threads(3, lambda c: load_and_compute(c, folder, PROMPT, PIECES))[0]
    assert found is not None
    assert (found - reference_logits(folder, PROMPT)).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 256}),
        ("qwen2", {"max_window_layers": 2, "layer_types": None}),
        ("gemma2", {"layer_types": ["full_attention"] * 2}),
        ("gemma2", {"attn_logit_softcapping": 1e6}),
        ("gemma2", {"final_logit_softcapping": 1e6}),
        ("gemma2", {"query_pre_attn_scalar": 16}),
        ("gemma3", {"layer_types": ["full_attention"] * 7}),
        ("gemma3", {"rope_parameters": None}),
        ("phi3", {"sliding_window": None}),
        ("qwen3_moe", {"norm_topk_prob": False}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("llama3", {"rope_parameters": None}),
        ("yarn", {"rope_parameters": None}),
        ("cohere_plus", {"use_qk_norm": False}),
        ("phi", {"hidden_act": "silu"}),
        ("phi", {"hidden_act": "gelu"}),
        ("phi", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}),
        ("phi4", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}}),
    ],
)
def test_what_the_config_says_matters(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    """Else the comparison with the reference would prove nothing about it."""
    folder = write_checkpoint(tmp_path / "m", **FAMILIES[family])
    before = world_logits(1, folder, PROMPT, [17])
    changed(folder, **changes)
    assert (world_logits(1, folder, PROMPT, [17]) - before).abs().max() > 1e-3


LEFT_OVER = {
    "sliding_window": 3,
    "layer_types": ["sliding_attention"] * 2,
    "attn_logit_softcapping": 1.0,
    "final_logit_softcapping": 1.0,
    "query_pre_attn_scalar": 3,
    "hidden_activation": "gelu",
    "rope_local_base_freq": 77.0,
    "num_experts": 3,
    "norms_with_offset": True,
}


@pytest.mark.parametrize("family", ["llama2", "qwen3", "gemma", "gemma2"])
def test_keys_of_other_families_mean_nothing(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **FAMILIES[family])
    before = read_config(folder)
    own = FAMILY_ROWS[before.model_type].keys
    changed(folder, **{key: value for key, value in LEFT_OVER.items() if key not in own})
    assert read_config(folder) == before


@pytest.mark.parametrize("family", ["dynamic_rope", "phi4"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_rope_that_grows_with_the_text_goes_by_the_context(tmp_path: Path, family: str, size: int) -> None:
    row = {**FAMILIES[family], "max_position_embeddings": 80}
    if family == "phi4":
        rope = {**row["rope_scaling"], "original_max_position_embeddings": 64}
        row |= {"rope_scaling": rope, "original_max_position_embeddings": 64}
    folder = write_checkpoint(tmp_path / "m", **row)
    tokens = [(7 * i) % 190 for i in range(96)]
    for count, context in ((96, 96), (60, 64)):
        found = world_logits(size, folder, tokens[:count], [50, count - 50], context=context)
        assert (found - reference_logits(folder, tokens[:count])).abs().max() <= 1e-4
    assert (world_logits(size, folder, tokens[:60], [60], context=96) - found).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_may_be_spread_whole_over_the_ranks(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **FAMILIES[family])
    expected, text = reference_logits(folder, PROMPT), reference_greedy(folder, PROMPT, 8)
    settings = EngineSettings(context_length=64, block_size=4, max_step_tokens=7, experts="spread")
    messages = [generate(1, folder, PROMPT, sampling=Sampling(temperature=0.0), max_tokens=8)]
    for size in range(1, 9):
        assert (world_logits(size, folder, PROMPT, PIECES, experts="spread") - expected).abs().max() <= 1e-4
        recorder = run_threads(size, lambda c: run_engine(c, messages, settings))[0]
        assert recorder is not None
        assert recorder.tokens(1) == text


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen3", "phi4", "mistral", "qwen2"])
def test_families_are_deterministic_too(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **FAMILIES[family])
    expected = world_logits(1, folder, PROMPT, [17], deterministic=True)
    assert (expected - reference_logits(folder, PROMPT)).abs().max() <= 1e-3
    for size, pieces in ((1, PIECES), (3, [17]), (8, [4] * 4 + [1])):
        assert torch.equal(world_logits(size, folder, PROMPT, pieces, deterministic=True), expected)


@pytest.mark.parametrize(("family", "row"), [("mixtral", FAMILIES["mixtral"]), ("bert", ENCODERS["bert"])])
def test_what_cannot_be_deterministic_is_refused(tmp_path: Path, family: str, row: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path / "m", **row)
    message = f"deterministic=true cannot compute a model of type {family}; use deterministic=false"
    with pytest.raises(ModelError, match=message):
        run_threads(2, lambda c: lead(c, lambda r: r.lead_load(load_message(folder, deterministic=True))))


ENCODED = [PROMPT, PROMPT[:1], PROMPT[::-1] + PROMPT, PROMPT[:9], PROMPT[2:7]]


@pytest.mark.parametrize("native_kernels", [True, False])
@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_embed_as_the_reference(
    tmp_path: Path, family: str, native_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "m", **ENCODERS[family])
    if not native_kernels:
        monkeypatch.setattr(native, "library", lambda: None)
    hidden = [reference_hidden(folder, prompt) for prompt in ENCODED]
    wanted = {"mean": [h.mean(0) for h in hidden], "first": [h[0] for h in hidden], "last": [h[-1] for h in hidden]}
    messages = [embed(i, folder, ENCODED, pooling=pooling) for i, pooling in enumerate(wanted)]
    for size in range(1, 9):
        recorder = run_threads(size, lambda c: run_engine(c, messages, SMALL))[0]
        assert recorder is not None
        for number, vectors in enumerate(wanted.values()):
            found = recorder.embeddings(number)
            assert sorted(found) == list(range(len(ENCODED)))
            for place, vector in enumerate(vectors):
                assert (found[place] - vector).abs().max() <= 1e-4, f"{family} on {size} ranks"


def test_an_encoder_does_not_complete_and_a_decoder_has_no_first_token(tmp_path: Path) -> None:
    encoder = write_checkpoint(tmp_path / "e", **ENCODERS["bert"])
    decoder = write_checkpoint(tmp_path / "d")
    messages = [generate(1, encoder, PROMPT)]
    recorder = run_threads(2, lambda c: run_engine(c, messages, SMALL))[0]
    assert recorder is not None
    assert (recorder.last(1)["code"], recorder.tokens(1)) == ("request", [])
    messages = [embed(1, decoder, [PROMPT], pooling="first")]
    recorder = run_threads(2, lambda c: run_engine(c, messages, SMALL))[0]
    assert recorder is not None
    assert recorder.last(1)["code"] == "request"
    assert "encoders only" in recorder.last(1)["message"]


@pytest.mark.parametrize(
    ("family", "key", "value", "message"),
    [
        ("llama2", "model_type", "qwen9", "model_type 'qwen9' is not supported; known are: bert, "),
        ("llama2", "rope_parameters", {"rope_type": "spiral"}, "rope type 'spiral' is not supported"),
        ("gemma2", "hidden_activation", "relu", "hidden_activation 'relu' is not supported"),
        ("gemma2", "layer_types", ["full_attention"], "layer_types .* for 2 layers"),
        ("gemma2", "layer_types", ["full_attention", "chunked"], "layer_types"),
        ("gemma2", "query_pre_attn_scalar", 0, "query_pre_attn_scalar is 0; it must be a positive float"),
        ("mixtral", "num_experts_per_tok", 9, "num_experts_per_tok is 9; there are 5 experts"),
        ("mixtral", "num_local_experts", "8", "num_local_experts is '8'; it must be a positive int"),
        ("phi4", "rope_parameters", {"rope_type": "longrope", "short_factor": [1.0]}, "short_factor must be a list of"),
        ("yarn", "rope_parameters", {"rope_type": "yarn", "factor": -1}, "factor is -1"),
        ("llama2", "partial_rotary_factor", 0.1, "partial_rotary_factor 0.1"),
        ("llama2", "num_hidden_layers", 10**6, "num_hidden_layers is 1000000; at most 4096"),
        ("gemma3", "use_bidirectional_attention", True, "use_bidirectional_attention is True"),
        ("phi", "qk_layernorm", True, "qk_layernorm is True; this family is supported without norms of heads"),
        ("qwen2", "is_causal", False, "is_causal is False; this family is supported as a decoder only"),
        ("llama2", "head_dim", 2**31, "head_dim is 2147483648; at most 65536 is supported"),
        ("llama2", "hidden_size", 2**31, "hidden_size is 2147483648; at most"),
        ("llama2", "vocab_size", 2**39, "vocab_size is 549755813888; at most"),
        ("mixtral", "num_local_experts", 2**31, "num_local_experts is 2147483648; at most 4096"),
        ("yarn", "rope_parameters", {"rope_type": "yarn", "factor": 4.0, "beta_slow": 1e-320}, "beta_slow is 1e-320"),
        ("llama2", "rope_parameters", {"rope_type": "linear", "factor": 1e-300}, "factor is 1e-300; it must be at"),
        ("llama2", "rope_parameters", {"rope_theta": 1e-320}, "rope_theta is .*1e-320 is given; it must be at least 1"),
    ],
)
def test_configs_that_cannot_be_served_name_file_and_field(
    tmp_path: Path, family: str, key: str, value: Any, message: str
) -> None:
    folder = write_checkpoint(tmp_path / "m", **FAMILIES[family])
    changed(folder, **{key: value})
    with pytest.raises(ModelError, match=message) as caught:
        read_config(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_configs_of_older_versions_say_the_same() -> None:
    """Published configs have rope_theta and rope_scaling, leave defaults out, and nest the text of models that see."""
    base = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 7,
        "num_attention_heads": 8,
        "vocab_size": 9,
    }
    old = {"model_type": "gemma3", "text_config": {**base, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}}
    config = parse_config(old, "c")
    assert (config.model_type, config.head_dim, config.num_kv_heads) == ("gemma3_text", 256, 4)
    local, everywhere = config.layers[0], config.layers[5]
    assert local.rope is not None
    assert everywhere.rope is not None
    assert (local.window, local.rope.theta, local.rope.kind) == (4096, 10000.0, "default")
    assert (everywhere.window, everywhere.rope.theta, everywhere.rope.kind) == (None, 1e6, "linear")
    assert everywhere.rope.factor == 8
    phi = {
        **base,
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    }
    rope = parse_config(phi, "c").layers[0].rope
    assert rope is not None
    assert (rope.kind, rope.original_context, rope.factor) == ("longrope", 4096, 32)
    assert rope.magnitude == pytest.approx((1 + 5 / 12) ** 0.5)
    assert parse_config({**base, "model_type": "mistral"}, "c").layers[0].window == 4096
    assert parse_config({**base, "model_type": "mistral", "sliding_window": None}, "c").layers[0].window is None
    assert parse_config({**base, "model_type": "gemma", "hidden_act": "gelu"}, "c").activation == "gelu_tanh"
