"""`ollampi plan` says what a model will take, from its config.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ollampi.launcher.plan import main, options

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(SMALL))
    return tmp_path / "small"


def test_a_plan_needs_a_config_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "ranks=3", "memory=2GiB", "ctx=256", "hosts=3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("small: llama, 0.07 million weights, 2 layers of width 64, 4 heads over 2 KV heads")
    lines = [line.split() for line in text.splitlines() if line[:1].isdigit()]
    assert [line[0] for line in lines] == ["0-1", "2", "1", "2", "3"]  # of 4 heads the last rank has 2; then estimates
    assert "RUNTIME" in text
    assert all("256 MiB" in " ".join(line) for line in lines[:2])
    assert "with a context of 256 tokens, which fits into 2 GiB (given)" in text
    assert "largest context of one text: 512 tokens (the model's limit)" in text
    assert "exchange per token: 5 all-reduces of 256 B, for which each rank sends 1.67 KiB at least; 266 B of" in text


def test_a_plan_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "ranks=3", "memory=2GiB", "ctx=256", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told | {"ranks": [], "estimates": [], "assumptions": {}} == {
        "model": "small",
        "folder": str(folder),
        "architecture": "llama",
        "parameter_count": 2 * 100 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64) + 64,
        "context_length": 256,
        "largest_context": 512,
        "host_bytes": sum(rank["total_bytes"] for rank in told["ranks"]),
        "memory_bytes": 2 << 30,
        "fits": True,
        "streamed": None,
        "all_reduces": 5,
        "all_reduce_bytes": 64 * 4,
        "approximate": False,
        "replicas": 1,
        "ranks": [],
        "estimates": [],
        "assumptions": {},
    }
    assert [rank["heads"] for rank in told["ranks"]] == [1, 1, 2]
    for rank in told["ranks"]:  # keys and values of 16 numbers in bfloat16, in 2 layers
        assert rank["cache_bytes"] == 256 * 2 * 2 * 16 * 2 * rank["kv_heads"]
        assert rank["runtime_bytes"] == 256 << 20
        assert rank["total_bytes"] == rank["weight_bytes"] + rank["cache_bytes"] + rank["runtime_bytes"]
    assert [row["shards"] for row in told["estimates"]] == [1, 2, 3]
    assert told["estimates"][-1]["rank_bytes"] == max(rank["total_bytes"] for rank in told["ranks"])


def test_a_plan_says_what_is_approximate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = "synchronization_points=attention_only"
    assert main([str(folder), "ranks=3", once]) == 0
    text = capsys.readouterr().out
    assert "exchange per token: 4 all-reduces of 256 B" in text
    assert "APPROXIMATE: exchange.synchronization_points=attention_only" in text
    assert main([str(folder), "ranks=3", once, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["all_reduces"], told["approximate"]) == (4, True)


@pytest.mark.parametrize("path", ["small", "small/", "small/config.json"])
def test_a_model_is_found_by_its_folder_or_config(folder: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder.parent / path), "memory=100MiB"]) == 0
    text = capsys.readouterr().out
    assert "does NOT fit into 100 MiB (given)" in text
    assert "largest context of one text: none fits" in text
    assert "exchange" not in text


def test_layers_are_streamed_where_not_all_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"hidden_size": 4096, "intermediate_size": 8192}))
    layer = (4 * 4096**2 - 2 * 2048 * 4096 + 3 * 4096 * 8192) * 2  # two of four heads are KV heads

    def streamed(*options: str) -> dict[str, int] | None:
        assert main([str(tmp_path), "ctx=16", "--json", *options]) == 0
        found: dict[str, int] | None = json.loads(capsys.readouterr().out)["streamed"]
        return found

    assert streamed("memory=2GiB") is None
    assert streamed("memory=256MiB") is None  # no help
    assert streamed("memory=600MiB", "stream=never") is None
    found = streamed("memory=600MiB", "prefetch_factor=0")
    assert found is not None
    assert (found["layers"], found["step_bytes"]) == (2, 2 * layer)
    assert main([str(tmp_path), "memory=600MiB", "prefetch_factor=0", "ctx=16"]) == 0
    text = capsys.readouterr().out
    assert "does NOT fit into 600 MiB (given)" in text
    assert "with cache=FOLDER 2 of 2 layers are streamed: per host at most" in text
    assert f"and a rank reads {2 * layer >> 20} MiB in every step" in text
    always = streamed("memory=2GiB", "stream=always", "prefetch_factor=0")
    assert always is not None
    assert always["layers"] == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["demo", "foo=1"], "'foo=1' is no option of plan; write key=value, with one of: ranks, hosts, memory"),
        (["demo", "ranks"], "'ranks' is no option of plan"),
        (["demo", "ranks=0"], "ranks is 0; it must be a whole number from 1 to 4096"),
        (["demo", "ranks=9"], "cannot cut 8 attention heads into 9 shards; use at most 8 ranks, or name shards, so"),
        (["demo", "ranks=9", "shards=9"], "cannot cut 8 attention heads into 9 shards; give shards=8 or less\n"),
        (["demo", "ranks=2", "shards=3"], "shards is 3; there are 2 ranks, and each has one at most"),
        (["demo", "shards=0"], "shards is 0; it must be a whole number from 1 to 4096 or null"),
        (["demo", "gbit=0"], "gbit is 0; it must be a number from 1e-06 to 1000000000.0 or null (between hosts)"),
        (["demo", "gbit=fast"], "gbit is 'fast'; it must be a number"),
        (["demo", "latency_us=-1"], "latency_us is -1; it must be a number from 0"),
        (["demo", "cores=0"], "cores is 0; it must be a whole number"),
        (["demo", "level=5"], "level is 5; it must be"),
        (["demo", "ranks=2", "hosts=3"], "hosts is 3; there are 2 ranks"),
        (["demo", "memory=lots"], "memory is 'lots'; it must be a size such as 80GiB"),
        (["demo", "memory=0"], "memory is 0; it must be a size"),
        (["demo", "memory=64"], "memory is 64; it must be a size such as 80GiB"),
        (["demo", "quantize=q5"], "quantize is 'q5'; it must be one of auto, none, q8, q4"),
        (["nothing"], "model 'nothing' not found"),
    ],
)
def test_what_cannot_be_planned_is_one_line(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 << 30), ("1.5TB", 1_500_000_000_000), ("512m", 512_000_000), ("7000000", 7_000_000), ("null", None)],
)
def test_sizes(text: str, size: int | None) -> None:
    assert options([f"memory={text}"])["memory"] == size


def test_the_command_prints_it() -> None:
    for flags, start in (([], "demo: llama, 5.57 million weights"), (["--json"], '{\n  "model": "demo",\n')):
        line = [sys.executable, "-m", "ollampi", "plan", *flags, "demo", "ranks=2"]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stdout.startswith(start)
