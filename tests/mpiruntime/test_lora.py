"""LoRA adapters are merged as PEFT merges them, and refused by field or tensor where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import merged_by_peft, write_adapter
from support.checkpoints import write_checkpoint
from support.packers import awq, random_numbers, write_quantised
from support.sources import Reader, all_rows, plain_sources

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.lora import merged
from ollampi.mpiruntime.prequantised import prequantised_sources
from ollampi.mpiruntime.safetensors_header import read_header
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.source import Source

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of PEFT and transformers

Q = "base_model.model.model.layers.0.self_attn.q_proj"
PATTERNS: dict[str, Any] = {
    "target_modules": ["q_proj", "k_proj", "down_proj"],
    "rank_pattern": {"layers.0.self_attn.q_proj": 2, "^model.layers.1.mlp.down_proj": 3, "k_proj": 6},
    "alpha_pattern": {"k_proj": 1},
}
CONFIGS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": "all-linear", "use_rslora": True},
    PATTERNS,
    {**PATTERNS, "use_rslora": True},
    {"target_modules": ["o_proj", "embed_tokens", "lm_head"]},
    {"target_modules": ["up_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    {"target_modules": ["up_proj"], "modules_to_save": ["norm"]},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "m")


def assert_holds(sources: dict[str, Source], expected: dict[str, torch.Tensor]) -> None:
    assert sources.keys() == expected.keys()
    for name, source in sources.items():
        assert source.shape == tuple(expected[name].shape)
        torch.testing.assert_close(all_rows(source, 7).float(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS)
def test_merging_is_that_of_peft(base: Path, tmp_path: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
    adapter = write_adapter(base, tmp_path / "a", dtype=dtype, **config)
    plain, made = plain_sources(base), merged(plain_sources(base), adapter)
    assert_holds(made, merged_by_peft(base, adapter).state_dict())
    assert any(made[name].size_bytes > plain[name].size_bytes for name in made)


def test_several_are_merged_one_after_the_other(base: Path, tmp_path: Path) -> None:
    first = write_adapter(base, tmp_path / "a", 1, target_modules=["q_proj", "up_proj"])
    second = write_adapter(base, tmp_path / "b", 2, target_modules=["q_proj"], r=2)
    assert_holds(merged(merged(plain_sources(base), first), second), merged_by_peft(base, first, second).state_dict())


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_parts_of_any_number_of_ranks_are_those_of_the_whole(base: Path, tmp_path: Path, size: int) -> None:
    adapter = write_adapter(base, tmp_path / "a", target_modules="all-linear", r=24)
    for name, source in merged(plain_sources(base), adapter).items():
        parts = [Shard(rank, size).of(source.shape[0]) for rank in range(size)]
        rows = [source.rows(part.start, part.stop, Reader()).values for part in parts]
        assert torch.equal(torch.cat(rows), all_rows(source)), name


def test_a_quantised_base_is_merged_by_its_values(base: Path, tmp_path: Path) -> None:
    numbers, stem = random_numbers(64, 64, 32), "model.layers.0.self_attn.q_proj"
    told = {"quant_method": "awq", "bits": 4, "group_size": 32}
    folder = write_quantised(base, tmp_path / "m", told, {stem: awq(numbers)})
    found = prequantised_sources(folder, read_header(folder / "model.safetensors"), Reader())
    adapter = write_adapter(base, tmp_path / "a", target_modules=["q_proj"])
    sources = {**{k: v for k, v in plain_sources(folder).items() if k in found.rest}, **found.sources}
    made = merged(sources, adapter)[f"{stem}.weight"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    delta = 2 * tensors[f"{Q}.lora_B.weight"] @ tensors[f"{Q}.lora_A.weight"]
    assert (made.bits, made.kind) == (None, "AWQ+LoRA")
    torch.testing.assert_close(all_rows(made, 5), numbers.weight() + delta)


def test_names_with_the_adapters_own_name_and_bases_without_a_prefix(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "a", target_modules=["q_proj"])
    expected = merged_by_peft(base, adapter).state_dict()
    rename(adapter, "lora_A.weight", "lora_A.default.weight")
    bare = {name.removeprefix("model."): source for name, source in plain_sources(base).items()}
    assert_holds(merged(bare, adapter), {name.removeprefix("model."): tensor for name, tensor in expected.items()})


def rename(adapter: Path, old: str, new: str) -> None:
    """Change the names of an adapter's tensors."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace(old, new): t for name, t in tensors.items()}, adapter / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(
        {f"{Q}.lora_A.weight": torch.randn(4, 64), f"{Q}.lora_B.weight": torch.randn(64, 4)},
        folder / "adapter_model.safetensors",
    )
    return folder


def changed(adapter: Path, folder: Path, fields: dict[str, Any], tensors: dict[str, torch.Tensor | None]) -> Path:
    """Write an adapter with other settings and tensors; None removes one."""
    folder.mkdir()
    values = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, **fields}))
    kept = {**load_file(adapter / "adapter_model.safetensors"), **tensors}
    save_file({k: v for k, v in kept.items() if v is not None}, folder / "adapter_model.safetensors")
    return folder


FIELDS: list[tuple[str, Any]] = [
    ("peft_type", "LOHA"),
    ("peft_type", None),
    ("use_dora", True),
    ("use_rslora", "yes"),
    ("bias", "all"),
    ("fan_in_fan_out", True),
    ("lora_bias", True),
    ("target_parameters", ["experts.gate_up_proj"]),
    ("layer_replication", [[0, 1], [0, 2]]),
    ("alora_invocation_tokens", [5]),
    ("trainable_token_indices", [5]),
    ("init_lora_weights", "pissa_niter_16"),
    ("init_lora_weights", ["x"]),
    ("r", 0),
    ("r", 4.0),
    ("r", True),
    ("r", None),
    ("r", 10**400),
    ("lora_alpha", float("nan")),
    ("lora_alpha", float("inf")),
    ("lora_alpha", "8"),
    ("rank_pattern", {"(a+)+$": 4}),
    ("rank_pattern", 5),
    ("alpha_pattern", ["q_proj"]),
]


@pytest.mark.parametrize(("field", "value"), FIELDS)
def test_settings_that_cannot_be_used_are_refused_by_field(
    base: Path, adapter: Path, tmp_path: Path, field: str, value: Any
) -> None:
    folder = changed(adapter, tmp_path / "a", {field: value}, {})
    with pytest.raises(CheckpointError, match=rf"adapter_config.json: {field} is .*must be"):
        merged(plain_sources(base), folder)


def test_a_bad_number_in_a_pattern_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = changed(adapter, tmp_path / "a", {"rank_pattern": {"q_proj": "4"}}, {})
    with pytest.raises(CheckpointError, match="q_proj is '4'"):
        merged(plain_sources(base), folder)


TENSORS: list[tuple[dict[str, torch.Tensor | None], str]] = [
    ({f"{Q}.lora_B.weight": None}, "lora_A.*wanted are lora_A and lora_B"),
    ({f"{Q}.lora_A.weight": torch.zeros(3, 64)}, r"lora_A.*\[3, 64\].*\[4, 64\]"),
    ({f"{Q}.lora_A.weight": torch.zeros(4, 65)}, r"lora_A.*\[4, 65\].*'org/base'"),
    ({f"{Q}.lora_B.weight": torch.zeros(64, 4, 1)}, r"lora_B.*\[64, 4, 1\]"),
    ({f"{Q}.lora_B.weight": torch.zeros(64, 4).int()}, "lora_B.*I32"),
    ({Q.replace("0", "7") + ".lora_A.weight": torch.zeros(4, 64)}, "'model.layers.7.*does not have.*'org/base'"),
    ({f"{Q}.lora_magnitude_vector": torch.zeros(64)}, "lora_magnitude_vector"),
    ({f"{Q}.lora_B.bias": torch.zeros(64)}, "lora_B.bias"),
    ({"model.x.lora_A.weight": torch.zeros(4, 64)}, "model.x.lora_A"),
    ({"base_model.model.lm_head.weight": torch.zeros(203, 65)}, r"lm_head.*\[203, 65\].*\[203, 64\]"),
    ({"base_model.model.model.norm.lora_A.weight": torch.zeros(4, 64)}, "norm"),
]


@pytest.mark.parametrize(("tensors", "told"), TENSORS)
def test_an_adapter_for_another_model_is_refused_by_tensor(
    base: Path, adapter: Path, tmp_path: Path, tensors: dict[str, torch.Tensor | None], told: str
) -> None:
    folder = changed(adapter, tmp_path / "a", {}, tensors)
    with pytest.raises(CheckpointError, match=told):
        merged(plain_sources(base), folder)


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_a_table_that_is_both_input_and_output_is_not_changed(adapter: Path, tmp_path: Path, name: str) -> None:
    tied = plain_sources(write_checkpoint(tmp_path / "m", tie_word_embeddings=True))
    folder = changed(adapter, tmp_path / "a", {}, {f"base_model.model.{name}.weight": torch.zeros(203, 64)})
    with pytest.raises(CheckpointError, match=r"output head as well|does not have"):
        merged(tied, folder)


def test_pickles_are_refused_with_advice(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"no adapter_model.safetensors"):
        merged(plain_sources(base), tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"adapter_model.bin may run code.*save it with PEFT as safetensors"):
        merged(plain_sources(base), tmp_path)


def test_a_folder_that_is_no_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter_config.json in .*an adapter is a folder"):
        merged(plain_sources(base), tmp_path)
