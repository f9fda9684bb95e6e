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
    assert [line[0] for line in lines] == ["0-1", "2"]  # of 4 heads the last rank has 2
    assert "with a context of 256 tokens, which fits into 2 GiB (given)" in text
    assert "largest context of one text: 512 tokens (the model's limit)" in text
    assert "exchange per token: 5 all-reduces of 256 B, for which each rank sends 1.67 KiB at least; 266 B of" in text


@pytest.mark.parametrize("path", ["small", "small/", "small/config.json"])
def test_a_model_is_found_by_its_folder_or_config(folder: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder.parent / path), "memory=100MiB"]) == 0
    text = capsys.readouterr().out
    assert "does NOT fit into 100 MiB (given)" in text
    assert "largest context of one text: none fits" in text
    assert "exchange" not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["demo", "foo=1"], "'foo=1' is no option of plan; write key=value, with one of: ranks, hosts, memory"),
        (["demo", "ranks"], "'ranks' is no option of plan"),
        (["demo", "ranks=0"], "ranks is 0; it must be a whole number from 1 to 4096"),
        (["demo", "ranks=9"], "cannot cut 8 attention heads into 9 shards; use at most 8 ranks"),
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
    done = subprocess.run([sys.executable, "-m", "ollampi", "plan", "demo", "ranks=2"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("demo: llama, 5.57 million weights")
