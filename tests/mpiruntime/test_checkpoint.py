"""Checkpoints are read exactly, in part, and refused by file, tensor, wanted and found where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import FAMILIES, PROMPT, write_checkpoint
from support.worlds import generate, run_engine

from ollampi.mpiruntime.checkpoint import Checkpoint, open_checkpoint
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.model_config import parse_config
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.weights import Loaded


def loaded(checkpoint: Checkpoint) -> Loaded:
    """Return all tensors in fp32."""
    return Loaded(torch.float32, sources=checkpoint.sources, checkpoint=checkpoint)


def test_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    whole = torch.randn(301, 77, dtype=torch.bfloat16)
    save_file({"p.w": whole, "p.v": whole[:, 0].contiguous()}, tmp_path / "model.safetensors")
    weights = loaded(open_checkpoint(tmp_path)) / "p"
    assert torch.equal(weights.rows("w", (301, 77), range(5, 200)), whole[5:200].float())
    assert torch.equal(weights.columns("w", (301, 77), range(3, 70)), whole[:, 3:70].float())
    assert torch.equal(weights.vector("v", 301, range(7, 9)), whole[7:9, 0].float())
    stacked = weights.stacked_rows([("w", (301, 77), range(2)), ("w", (301, 77), range(300, 301))])
    assert torch.equal(stacked, torch.cat([whole[:2], whole[300:]]).float())
    assert weights.checkpoint.unread == set()


def test_progress_counts_every_tensor_once_and_ends_with_all(tmp_path: Path) -> None:
    save_file({name: torch.ones(8, 4) for name in ("a", "b", "unused")}, tmp_path / "model.safetensors")
    checkpoint, told = open_checkpoint(tmp_path), list[tuple[int, int]]()
    checkpoint.progress = lambda passed, total: told.append((passed, total))
    weights = loaded(checkpoint)
    for name in ("a", "b", "a"):
        weights.rows(name, (8, 4), range(2))
    assert told == [(128, 384), (256, 384)]
    checkpoint.finish()
    assert told[2:] == [(384, 384)]


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \*.safetensors in .*[^n]$"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt", "tf_model.h5"])
def test_formats_that_may_run_code_are_refused_with_advice(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=rf"{name} may run code and is not read, convert it to safetensors"):
        open_checkpoint(tmp_path)


OUTSIDE = ["../x", "/etc/passwd", "sub/x", "%2e%2e%2fx", "..%2fx", "\ud800", "a\0b", "a\nb", "x" * 300, "..\\x"]


@pytest.mark.parametrize("name", [*(f"{n}.safetensors" for n in OUTSIDE), "x.bin", "/etc/passwd", "", 5, None, ["a"]])
def test_an_index_names_only_files_beside_it(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"must be a \*.safetensors file beside the index|is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (b'{"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}}', "names tensor 'a' in 2.*it is in 1"),
        (b'{"weight_map": {"a": "1.safetensors", "c": "2.safetensors"}}', "names tensor 'c'.*in none of its files"),
        (b'{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}', "a key comes twice"),
        (b'{"weight_map": {}}', "holds no weight_map"),
        (b'{"weight_map": ["a"]}', "holds no weight_map"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[" + b"[]," * 2_000_000 + b"[]]", "than it can need"),
        (b'"' + b"x" * (65 << 20) + b'"', "than it can need"),
        (b"\xff\xfe", "not valid JSON"),
        (b"5", "is no object"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, index: bytes, told: str) -> None:
    for name, tensor in (("1", "a"), ("2", "b")):
        save_file({tensor: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(tmp_path)


def test_one_file_counts_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert open_checkpoint(tmp_path).unread == {"a"}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, shards=True)
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=gone.name):
        open_checkpoint(folder)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"num_hidden_layers": 3}, ["model.layers.2", "is missing"]),
        ({"hidden_size": 128}, ["model.embed_tokens.weight", "[203, 64]", "[203, 128]"]),
        ({"vocab_size": 204}, ["model.embed_tokens.weight", "[203, 64]", "[204, 64]"]),
        ({"intermediate_size": 161}, ["mlp.gate_proj.weight", "[160, 64]", "[161, 64]"]),
        ({"model_type": "mamba"}, ["model_type 'mamba' is not supported", "llama"]),
        ({"num_attention_heads": "8"}, ["num_attention_heads is '8'", "positive int"]),
        ({"num_key_value_heads": 3}, ["no multiple of num_key_value_heads 3"]),
        ({"rms_norm_eps": None, "hidden_size": None}, ["hidden_size is missing"]),
        ({"rope_parameters": {"rope_type": "spiral"}}, ["rope type 'spiral' is not supported", "llama3"]),
    ],
)
def test_a_config_that_does_not_fit_is_refused_on_every_rank(
    tmp_path: Path, size: int, changes: dict[str, Any], texts: list[str]
) -> None:
    folder = write_checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    messages = [generate(1, folder, PROMPT, max_tokens=1)]
    recorder = run_threads(size, lambda c: run_engine(c, messages, EngineSettings(cache_tokens=64, block_size=4)))[0]
    assert recorder is not None
    assert recorder.last(1)["code"] == "model"
    for text in texts:
        assert text in recorder.last(1)["message"]


def test_a_missing_tensor_is_named_with_its_shape(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", **FAMILIES["llama2"])
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    messages = [generate(1, folder, PROMPT, max_tokens=1)]
    recorder = run_threads(2, lambda c: run_engine(c, messages, EngineSettings(cache_tokens=64)))[0]
    assert recorder is not None
    assert "tensor 'model.layers.1.mlp.down_proj.weight' of shape [64, 160] is missing" in recorder.last(1)["message"]


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "vocab_size", "head_dim", "rope_theta", "rms_norm_eps"]
)
@pytest.mark.parametrize("value", [0, -1, "x", [], {}, True, 2**63, 1e400, float("nan")])
def test_numbers_of_a_config_are_checked(key: str, value: Any) -> None:
    good = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 9,
    }
    assert parse_config(good, "config").head_dim == 16
    with pytest.raises(ModelError, match=key):
        parse_config({**good, key: value}, "config")
