"""`ollampi plan` estimates what a token takes on any number of ranks, hosts and links, and says from what."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollampi.launcher.home import cache_folder
from ollampi.launcher.plan import main
from ollampi.mpiruntime.cost_fit import Fit, fit_key, write_fit
from ollampi.mpiruntime.cost_model import ASSUMED, Site, step_s
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.step_work import ModelWork

LARGE = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}
HOST = ["cores=16", "gflops=100", "gbytes=200", "memory=64GiB", "ctx=4096"]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no fit of this machine change what is assumed."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text(json.dumps(LARGE))
    return tmp_path / "large"


def planned(model: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main([str(model), *HOST, *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def by_shards(found: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {row["shards"]: row for row in found["estimates"]}


def test_each_number_of_shards_is_estimated_by_the_model(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(large, capsys, "ranks=24", "hosts=6", "latency_us=50", "gbit=10", "streams=4", "level=0")
    rows = by_shards(found)
    assert list(rows) == [1, 2, 4, 8, 16, 24]
    assert [row["replicas"] for row in rows.values()] == [24, 12, 6, 3, 1, 1]
    assert [row["hosts"] for row in rows.values()] == [1, 1, 1, 2, 4, 6]
    constants = replace(
        ASSUMED, far_trip_s=50e-6, far_byte_s=8e-10, host_byte_s=5e-12, many_flop_s=1e-11, few_flop_s=2e-11
    )
    assert found["assumptions"]["constants"] == pytest.approx(vars(constants))
    work = ModelWork(read_config(large), "bfloat16")
    for shards, local, hosts, busy in ((1, 1, 1, 4), (8, 4, 2, 4), (16, 4, 4, 4)):
        alone = Site(local, hosts, local, 4, 16)
        row = rows[shards]
        assert row["token_s"] == pytest.approx(step_s(work.decode(shards, 1, 2048), alone, constants))
        assert row["prompt_tokens_per_s"] == pytest.approx(512 / step_s(work.prefill(shards, 512), alone, constants))
        all_s = step_s(work.decode(shards, 4, 2048), replace(alone, busy=busy), constants)
        assert row["tokens_per_s"] == pytest.approx(row["replicas"] * 4 / all_s)


def test_a_slower_link_makes_shards_between_hosts_slower_and_no_others(
    large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["ranks=8", "hosts=4"]
    fast = by_shards(planned(large, capsys, *options, "gbit=100", "latency_us=10"))
    slow = by_shards(planned(large, capsys, *options, "gbit=1", "latency_us=100"))
    for name in ("token_s", "prompt_tokens_per_s"):
        assert [fast[n][name] == slow[n][name] for n in (1, 2, 4, 8)] == [True, True, False, False]
    assert slow[8]["token_s"] > fast[8]["token_s"]
    assert slow[8]["prompt_tokens_per_s"] < fast[8]["prompt_tokens_per_s"]


def test_many_hosts_hold_replicas(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(large, capsys, "ranks=512", "hosts=64", "shards=32")
    assert (found["replicas"], len(found["ranks"])) == (16, 32)
    rows = by_shards(found)
    assert max(rows) == 32  # heads
    assert rows[32]["replicas"] == 16
    assert found["host_bytes"] == max(8 * found["ranks"][0]["total_bytes"], 8 * found["ranks"][-1]["total_bytes"])
    assert main([str(large), *HOST, "ranks=10", "shards=4"]) == 0
    assert "2 replicas of 4 shards; 2 ranks are left over" in capsys.readouterr().out
    assert main(["demo", "ranks=3", "shards=2"]) == 0
    assert "1 replica of 2 shards; 1 rank is left over" in capsys.readouterr().out
    assert main(["demo", "ranks=2", "shards=1"]) == 0
    assert "2 replicas of 1 shard\n" in capsys.readouterr().out
    fits = {n: row["fits"] for n, row in by_shards(planned(large, capsys, "ranks=4", "memory=20GiB")).items()}
    assert fits == {1: False, 2: False, 4: True}  # 4 ranks share a host's 20 GiB: one copy fits


def test_the_words_name_what_was_assumed(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["ranks=4", "hosts=2", "gbit=25", "latency_us=30", "streams=8", "prompt=256"]
    assert main([str(large), *HOST, *given]) == 0
    text = capsys.readouterr().out
    assert "with constants that are assumed, of the right order on any machine, unless given" in text
    assert (
        "a host: 16 cores, 100 GFLOP/s each in prompts, 50 in answers; memory 200 GB/s, 10 for a core; 2 ranks" in text
    )
    assert "between hosts: 25 Gbit/s, 30 us for a trip, codes of level 2 where they pay; sums do not hide" in text
    assert "answers of 2048 tokens, prompts in steps of 256" in text
    assert "TOKENS/S, 8 IN EACH" in text
    assert "does NOT fit" not in text


def test_a_fit_of_this_machine_is_taken(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cache_folder(os.environ)
    assert folder is not None
    write_fit(folder, fit_key("q8", "auto"), Fit(replace(ASSUMED, step_s=3.0)))
    assert planned(large, capsys)["assumptions"]["fitted"] is False
    found = planned(large, capsys, "quantize=q8")
    assert found["assumptions"]["fitted"] is True
    assert found["estimates"][0]["token_s"] > 3.0
    assert main([str(large), *HOST, "quantize=q8"]) == 0
    assert "fitted to steps on this machine" in capsys.readouterr().out


def test_encoders_have_no_tokens_to_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "bert", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 64, "type_vocab_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (row,) = planned(tmp_path, capsys)["estimates"]
    assert (row["token_s"], row["tokens_per_s"]) == (None, None)
    assert row["prompt_tokens_per_s"] > 0
    assert main([str(tmp_path), *HOST]) == 0
    assert " - " in capsys.readouterr().out


def test_shards_that_quantised_weights_cannot_have_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LARGE | {"hidden_size": 160, "intermediate_size": 320, "num_hidden_layers": 1, "num_attention_heads": 10}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 10}))
    assert list(by_shards(planned(tmp_path, capsys, "ranks=10", "shards=5", "quantize=q8"))) == [1, 5]
    assert list(by_shards(planned(tmp_path, capsys, "ranks=10", "shards=5"))) == [1, 2, 4, 5, 8, 10]
