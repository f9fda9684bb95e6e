"""What is planned for a model is what its ranks hold once it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoints import ENCODERS, FAMILIES, write_checkpoint
from support.worlds import lead, load_message

from ollampi.mpiruntime.checkpoint import open_checkpoint
from ollampi.mpiruntime.errors import CheckpointError, ModelError, WorldError
from ollampi.mpiruntime.memory import RUNTIME_BYTES
from ollampi.mpiruntime.model_config import parse_config, read_config
from ollampi.mpiruntime.plan import RankPlan, Wanted, largest_context, num_parameters, plan, reduced_bytes
from ollampi.mpiruntime.thread_world import run_threads

# Shapes as published; the counts are those of the models' cards.
LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
LLAMA_405B = LLAMA_70B | {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
}
MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "num_local_experts": 8,
    "max_position_embeddings": 32768,
    "vocab_size": 32000,
} | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


@pytest.mark.parametrize("family", [*FAMILIES, *ENCODERS])
def test_a_load_holds_what_was_planned(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **{**FAMILIES, **ENCODERS}[family])
    config = read_config(folder)
    for size in (1, 3, 8):
        for experts in ("cut", "spread"):
            load = load_message(folder, experts=experts)
            reports = run_threads(size, lambda c, load=load: lead(c, lambda runner: runner.lead_load(load)))[0]
            assert reports is not None
            wanted = Wanted(size, "float32", "none", "auto", experts == "spread")
            for planned, report in zip(plan(config, wanted, None), reports, strict=True):
                assert (planned.heads, planned.kv_heads) == (tuple(report.heads), tuple(report.kv_heads))
                assert planned.weight_bytes == report.weight_bytes
                assert planned.position_bytes * load.num_blocks * load.block_size == report.cache_bytes


@pytest.mark.parametrize(
    ("values", "billions"), [(LLAMA_70B, 70.55), (LLAMA_405B, 405.85), (MIXTRAL_8X7B, 46.70)], ids=["70", "405", "moe"]
)
def test_a_config_alone_gives_the_number_of_weights(values: dict[str, object], billions: float) -> None:
    assert num_parameters(parse_config(values, "c")) / 1e9 == pytest.approx(billions, abs=0.005)


def test_all_ranks_together_hold_the_model_once() -> None:
    """Norms are on every rank, and KV heads on every rank that looks at them."""
    config = parse_config(LLAMA_70B, "c")
    whole = plan(config, Wanted(1, "bfloat16", "none", "auto", False))[0]
    parts = plan(config, Wanted(8, "bfloat16", "none", "auto", False))
    norms = 2 * (2 * 80 + 1) * 8192
    assert sum(part.weight_bytes - norms for part in parts) == whole.weight_bytes - norms
    assert sum(part.position_bytes for part in parts) == whole.position_bytes == 2 * 80 * 8 * 128 * 2
    assert reduced_bytes(config) == (161, 32768)


def test_the_largest_context_is_that_of_the_fullest_host() -> None:
    config = parse_config(LLAMA_70B, "c")
    ranks = [RankPlan((0, 1), (0, 1), 1000, 10), RankPlan((1, 2), (0, 1), 2000, 10), RankPlan((2, 3), (0, 1), 0, 30)]
    free = 3 * RUNTIME_BYTES
    assert largest_context(config, ranks, [0, 0, 1], free) == min(131072, (RUNTIME_BYTES - 3000) // 20)
    assert largest_context(config, ranks, [0, 1, 2], RUNTIME_BYTES + 2500) == 50
    assert largest_context(config, ranks, [0, 0, 0], free) == 0


def test_what_cannot_be_loaded_cannot_be_planned(tmp_path: Path) -> None:
    config = read_config(write_checkpoint(tmp_path / "m", intermediate_size=100, num_hidden_layers=1))
    with pytest.raises(WorldError, match="cannot cut 8 attention heads into 9 shards"):
        plan(config, Wanted(9, "float32", "none", "auto", False))
    with pytest.raises(ModelError, match="within groups of 32"):
        plan(config, Wanted(3, "float32", "q8", "auto", False))
    other = read_config(write_checkpoint(tmp_path / "other"))
    with pytest.raises(CheckpointError, match=r"tensor 'model\.layers\.0\.mlp.* has shape"):
        plan(other, Wanted(2, "float32", "none", "auto", False), open_checkpoint(tmp_path / "m").sources)
