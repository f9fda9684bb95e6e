"""What a step takes is arithmetic that can be done by hand, and what a model's step is follows from its shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint

from ollampi.kernels.codec import num_bytes
from ollampi.mpiruntime.algorithms import ALGORITHMS
from ollampi.mpiruntime.cost_model import Constants, Site, Work, counts, seconds_of, step_s
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.step_work import ModelWork

NOTHING = Constants(**dict.fromkeys(Constants.__dataclass_fields__, 0.0))


def constants(**values: float) -> Constants:
    """Return constants that are 0 but these."""
    return Constants(**{**vars(NOTHING), **values})


@pytest.mark.parametrize(
    ("work", "site", "values", "seconds"),
    [
        (Work(0), Site(), {"step_s": 0.5}, 0.5),
        (Work(0, rows=3), Site(), {"row_s": 0.25}, 0.75),
        (Work(0, layers=4), Site(), {"layer_s": 0.5}, 2.0),
        (Work(0, layers=4), Site(busy=4, cores=2), {"layer_s": 0.5}, 4.0),  # ranks take turns on the cores
        (Work(0, layers=4), Site(busy=3, cores=2), {"layer_s": 0.5}, 4.0),  # the third waits for one of the first two
        (Work(0, layers=4, tokens=3, sum_values=5), Site(busy=3, cores=2), {"value_s": 0.5}, 60.0),
        (Work(0), Site(local=2, busy=2), {"follow_s": 0.5}, 0.5),
        (Work(0), Site(hosts=2), {"follow_s": 0.5}, 0.5),
        (Work(0), Site(), {"follow_s": 0.5}, 0.0),
        (Work(0), Site(local=4, busy=4, cores=2), {"follow_s": 0.5}, 1.0),
        (Work(8), Site(), {"core_byte_s": 0.5}, 4.0),
        (Work(8), Site(threads=4, cores=4), {"core_byte_s": 0.5}, 1.0),
        (Work(8), Site(busy=4, cores=2), {"core_byte_s": 0.5}, 8.0),
        (Work(8), Site(busy=4, cores=4), {"core_byte_s": 0.5, "host_byte_s": 0.25}, 8.0),  # the memory is the limit
        (Work(8), Site(busy=4, cores=4), {"core_byte_s": 2.0, "host_byte_s": 0.25}, 16.0),
        (Work(64, flops=16), Site(), {"core_byte_s": 0.5, "few_flop_s": 1.0, "many_flop_s": 1.0}, 32.0),  # hides behind
        (Work(8, flops=16), Site(), {"core_byte_s": 0.5, "few_flop_s": 1.0}, 16.0),  # reading, or reading behind it
        (Work(0, flops=64), Site(threads=2), {"few_flop_s": 0.5}, 16.0),
        (Work(8, flops=16, native=False), Site(), {"core_byte_s": 0.5, "few_flop_s": 9.0, "many_flop_s": 0.25}, 8.0),
        (Work(0, native=False, weight_rows=12), Site(threads=2), {"restore_row_s": 0.5}, 3.0),
        (Work(0, weight_rows=12), Site(), {"restore_row_s": 0.5}, 0.0),
    ],
)
def test_a_rank_s_own_part(work: Work, site: Site, values: dict[str, float], seconds: float) -> None:
    assert step_s(work, site, constants(**values)) == pytest.approx(seconds)


SUM = Work(0, sums=1, sum_values=256)  # 1024 bytes


@pytest.mark.parametrize(
    ("site", "values", "seconds"),
    [
        (Site(), {"near_trip_s": 1.0, "far_trip_s": 1.0, "near_byte_s": 1.0, "far_byte_s": 1.0}, 0.0),
        (Site(local=2, busy=2), {"near_trip_s": 1.0}, 1.0),
        (Site(local=5, busy=5), {"near_trip_s": 1.0}, 3.0),
        (Site(local=4, busy=4), {"near_byte_s": 1.0}, 4096.0),
        (Site(local=4, busy=4, cores=2), {"near_trip_s": 1.0, "switch_s": 10.0}, 22.0),
        (Site(local=4, busy=4, cores=2), {"near_byte_s": 1.0}, 8192.0),
        (Site(hosts=2), {"far_trip_s": 1.0}, 1.0),
        (Site(hosts=2), {"far_byte_s": 1.0}, 1024.0),
        (Site(hosts=2), {"far_copy_s": 1.0}, 1024.0),
        (Site(hosts=2, busy=2, cores=1), {"far_copy_s": 1.0}, 2048.0),  # cores take turns, the link does not
        (Site(hosts=2, busy=2, cores=1), {"far_byte_s": 1.0}, 1024.0),
        (Site(hosts=2, busy=2, cores=1), {"far_message_s": 1.0}, 2.0),
        (Site(hosts=8), {"far_trip_s": 1.0}, 1.0),  # everybody sends to all
        (Site(hosts=8), {"far_trip_s": 1.0, "far_message_s": 1.0}, 6.0),  # doubling: 3 trips of a message; 1 + 7 before
        (Site(hosts=6), {"far_trip_s": 1.0, "far_message_s": 1.0}, 6.0),  # one step: 1 + 5, doubling: 4 + 4
        (Site(hosts=4), {"far_byte_s": 1.0}, 2 * 3 / 4 * 1024.0),  # scattered
        (Site(hosts=4), {"far_byte_s": 1.0, "far_trip_s": 1e4}, 1e4 + 3 * 1024),
        (Site(hosts=4, busy=4, cores=2), {"far_trip_s": 1.0, "switch_s": 5.0}, 6.0),
        (Site(hosts=2, local=2, busy=2), {"near_trip_s": 1.0, "far_trip_s": 10.0}, 11.0),
        (Site(hosts=2, level=2), {"far_byte_s": 1.0}, float(num_bytes(2, 256))),
        (Site(hosts=2, level=2), {"far_byte_s": 1.0, "code_value_s": 0.25}, num_bytes(2, 256) + 0.75 * 256),
        (Site(hosts=2, level=2), {"far_byte_s": 1.0, "code_value_s": 0.9}, 1024.0),  # codes do not pay
    ],
)
def test_a_sum(site: Site, values: dict[str, float], seconds: float) -> None:
    without = step_s(Work(0), site, constants(**values))
    assert step_s(SUM, site, constants(**values)) - without == pytest.approx(seconds)


@pytest.mark.parametrize(("tokens", "factor"), [(32, 1), (65, 2)])  # of 2 KiB each
def test_long_messages_wait_for_cores(tokens: int, factor: int) -> None:
    work, site = Work(0, tokens=tokens, sums=1, sum_values=512), Site(hosts=2, busy=2, cores=1)
    assert step_s(work, site, constants(far_byte_s=1.0)) == tokens * 2048 * factor


def test_sums_of_many_tokens_and_the_logits_way() -> None:
    work = Work(0, tokens=3, sums=5, sum_values=256, gather_bytes=4000.0)
    found = counts(work, Site(hosts=2), constants(far_byte_s=1.0))
    assert found["far_byte_s"] == 5 * 3 * 1024 + 2000
    assert found["far_trip_s"] == 5 + 1
    near = counts(work, Site(local=2, busy=2), constants())
    assert (near["near_byte_s"], near["near_trip_s"]) == (5 * 2 * 3 * 1024 + 2000, 6)


def test_the_ways_are_those_of_the_algorithms() -> None:
    """Whoever adds one describes it here and in the model."""
    assert sorted(ALGORITHMS) == ["doubling", "one_step", "scattered"]


def test_counts_times_constants_are_the_time() -> None:
    work, site = Work(1e9, 4e9, 8, 8, 16, 33, 2048, 1e5), Site(2, 3, 2, 1, 4, 2)
    made = Constants()
    assert seconds_of(counts(work, site, made), made) == pytest.approx(step_s(work, site, made))


def model(tmp_path: Path, quantize: str = "none", **config: Any) -> ModelWork:
    """Return the work of a model of the tests in fp32."""
    found = read_config(write_checkpoint(tmp_path / f"m{len(list(tmp_path.iterdir()))}", **config))
    return ModelWork(found, "float32", quantize)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_step_of_a_model(tmp_path: Path, shards: int) -> None:
    made = model(tmp_path)
    config, busiest = made.config, Shard(shards - 1, shards)
    heads, kv_heads = (len(span) for span in busiest.heads(config.num_heads, config.num_kv_heads))
    columns = len(busiest.of(config.mlp_width, unit=32))
    in_layer = config.width * (config.head_dim * (2 * heads + 2 * kv_heads) + 3 * columns)
    weights = config.num_layers * in_layer + len(busiest.of(config.vocab_size)) * config.width
    one = made.decode(shards, 1, 10)
    cached = 10 * 2 * config.num_layers * kv_heads * config.head_dim * 4
    assert one.read_bytes == weights * 4 + cached
    assert one.flops == 2 * weights + 4 * 10 * heads * config.head_dim * config.num_layers
    assert (one.tokens, one.rows, one.layers, one.sum_values) == (1, 1, config.num_layers, config.width)
    assert (one.sums, one.gather_bytes) == (2 * config.num_layers + 1, config.vocab_size * 4)
    three = made.decode(shards, 3, 10)
    assert three.read_bytes == weights * 4 + 3 * cached
    assert three.flops == 3 * one.flops
    prompt = made.prefill(shards, 8)
    head = len(busiest.of(config.vocab_size)) * config.width
    assert (prompt.native, made.prefill(shards, 9).native) == (True, False)
    assert (replace(made, few=4).prefill(shards, 5).native, replace(made, few=4).decode(shards, 4).native) == (
        False,
        True,
    )
    assert replace(made, quantize="q8").prefill(shards, 512).native
    rows = config.head_dim * (heads + 2 * kv_heads) + config.width + 2 * columns + config.width
    assert prompt.weight_rows == config.num_layers * rows
    looks = 4 * 36 * heads * config.head_dim * config.num_layers  # 1 + 2 + ... + 8 pairs
    assert prompt.flops == 2 * (8 * config.num_layers * in_layer + head) + looks
    assert prompt.read_bytes == weights * 4
    assert weights * 4 <= shard_size(config, busiest, "float32").total_bytes


def test_a_step_reads_quantised_weights_and_those_of_the_experts_that_are_asked(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32}
    plain, coded = (model(tmp_path, quantize, **sizes).decode(1) for quantize in ("none", "q8"))
    assert coded.flops == plain.flops
    assert coded.read_bytes / plain.read_bytes == pytest.approx(8.5 / 32, rel=0.02)


def test_a_step_of_a_mixture(tmp_path: Path) -> None:
    count, used = 4, 2
    made = model(tmp_path, model_type="mixtral", num_local_experts=count, num_experts_per_tok=used)
    config = made.config
    experts = 3 * config.width * config.mlp_width * count * config.num_layers
    one, many = made.decode(1), made.prefill(1, 64)
    assert many.read_bytes - one.read_bytes == pytest.approx(
        experts * 4 * (1 - (1 - used / count) ** 64 - used / count)
    )
    assert one.flops == one.read_bytes / 4 * 2


@pytest.mark.parametrize(("shards", "experts"), [(1, 4), (2, 2), (3, 2)])
def test_a_step_of_experts_that_are_spread(tmp_path: Path, shards: int, experts: int) -> None:
    """The last of three ranks has two of four experts, whole."""
    cut = model(tmp_path, model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)
    config = cut.config
    spread = ModelWork(config, "float32", spread=True)
    whole = 3 * config.width * config.mlp_width * config.num_layers
    columns = len(Shard(shards - 1, shards).of(config.mlp_width, unit=32))
    differ = experts * whole - 4 * 3 * config.width * columns * config.num_layers
    every = 10**6  # tokens: no expert is left out
    assert spread.prefill(shards, every).read_bytes - cut.prefill(shards, every).read_bytes == differ * 4
    assert spread.decode(shards).read_bytes - cut.decode(shards).read_bytes == differ * 4 / 2
