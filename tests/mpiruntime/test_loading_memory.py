"""While a model is loaded a rank holds its shard and at most one tensor more, whatever the format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import num_parameters, shard_size
from ollampi.mpiruntime.shard import Shard

WIDTH, MLP, VOCAB = 1024, 2048, 20480  # the table takes 40 MiB in bf16
TABLE_BYTES = VOCAB * WIDTH * 2
_CHILD = """
import json, sys
from pathlib import Path
from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Load
from ollampi.mpiruntime.world import survey

small, large, quantize, cache = sys.argv[1:]
runner = Runner(Single(), survey(Single()))
runner.lead_load(Load(0, small, "bfloat16", 16, 1, 16, quantize=quantize))  # libraries and threads are there then
def most():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
Path("/proc/self/clear_refs").write_text("5")
before = most()
(report,) = runner.lead_load(Load(1, large, "bfloat16", 16, 1, 16, quantize=quantize, shard_cache=cache or None))
print(json.dumps([most() - before, report.weight_bytes, report.read_bytes]))
"""


def write_model(folder: Path, vocab: int, layers: int) -> Path:
    """Write a model of one pattern of numbers, tied, in bf16."""
    shapes = {"model.embed_tokens.weight": (vocab, WIDTH), "model.norm.weight": (WIDTH,)}
    for i in range(layers):
        parts = {"self_attn.k_proj": (256, WIDTH), "self_attn.v_proj": (256, WIDTH), "mlp.down_proj": (WIDTH, MLP)}
        parts |= {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qo"}
        parts |= {f"mlp.{name}_proj": (MLP, WIDTH) for name in ("gate", "up")}
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in parts.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"model.layers.{i}.{name}.weight": (WIDTH,) for name in norms}
    pattern = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensors = {name: pattern.repeat(-(-torch.Size(s).numel() // len(pattern))) for name, s in shapes.items()}
    tensors = {name: tensors[name][: torch.Size(s).numel()].view(s) for name, s in shapes.items()}
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    values = {"model_type": "llama", "hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": layers}
    values |= {"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": vocab, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps({**values, "torch_dtype": "bfloat16"}))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a small and a large model."""
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "small", 64, 1), write_model(folder / "large", VOCAB, 4)


@pytest.mark.parametrize("quantize", ["none", "q8", "q4"])
def test_peak(models: tuple[Path, Path], tmp_path: Path, quantize: str) -> None:
    small, large = models
    config = read_config(large)
    shard = shard_size(config, Shard(0, 1), "bfloat16", quantize).total_bytes
    assert shard * 8 <= {"none": 16, "q8": 8.6, "q4": 4.6}[quantize] * num_parameters(config)
    for _ in range(1 if quantize == "none" else 2):  # the second time from the cache
        line = [sys.executable, "-c", _CHILD, str(small), str(large), quantize, str(tmp_path / "cache")]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        peak, held, _ = json.loads(done.stdout)
        assert held == shard
        assert peak <= shard + TABLE_BYTES // 2
