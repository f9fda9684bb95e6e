"""Print how fast a model is loaded in each format, and the most memory that takes: a random model, one rank.

    python benchmarks/loading.py [--layers 24] [--threads N]

Each load has a process of its own. "peak" is what the process took at most while it loaded, beyond what it had before,
and "shard" what it keeps. The checkpoint's pages are in memory: speed is that of the work, not of the disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import num_parameters
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Load
from ollampi.mpiruntime.world import survey

DEMO = Path(__file__).resolve().parent.parent / "conf/models/demo"
WIDTH, MLP, VOCAB = 1024, 2816, 32000
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (512, WIDTH),
    "self_attn.v_proj": (512, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (MLP, WIDTH),
    "mlp.up_proj": (MLP, WIDTH),
    "mlp.down_proj": (WIDTH, MLP),
}


def write_model(folder: Path, layers: int) -> None:
    """Write a random model in bf16."""
    draw = torch.Generator().manual_seed(0)
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in SHAPES.items()}
    shapes |= {"model.embed_tokens.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH)}
    norms = [f"model.layers.{i}.{kind}_layernorm" for i in range(layers) for kind in ("input", "post_attention")]
    tensors = {name: (torch.randn(shape, generator=draw) * 0.02).bfloat16() for name, shape in shapes.items()}
    tensors |= {f"{name}.weight": torch.ones(WIDTH).bfloat16() for name in [*norms, "model.norm"]}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": VOCAB,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def peak_bytes() -> int:
    """Return the most memory that this process has held since the peak was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def load(folder: str, quantize: str, cache: str | None, threads: int) -> None:
    """Print what one load takes and gives, as JSON."""
    runner = Runner(Single(), survey(Single()))
    torch.set_num_threads(threads)
    runner.lead_load(
        Load(0, str(DEMO), "bfloat16", 64, 4, 16, quantize=quantize)
    )  # libraries and threads are there then
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    (report,) = runner.lead_load(Load(1, folder, "bfloat16", 64, 4, 16, quantize=quantize, shard_cache=cache))
    print(json.dumps([report.seconds, report.read_bytes, peak_bytes() - before, report.weight_bytes]))


def main() -> None:
    """Print one line for each format, read from the checkpoint and from a cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        folder, quantize, cache = args.load
        load(folder, quantize, cache or None, args.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder, args.layers)
        weights = num_parameters(read_config(folder))
        print(f"{weights / 1e6:.0f} million weights in bf16, one rank, {args.threads} threads")
        cache = f"{temporary}/cache"
        loads = [("none", ""), ("q8", ""), ("q4", ""), ("q8", cache), ("q8", cache), ("q4", cache), ("q4", cache)]
        for quantize, kept in loads:
            source = "the cache" if any(Path(cache).glob(f"*-{quantize}-*")) else "the checkpoint"
            line = [sys.executable, __file__, "--threads", str(args.threads), "--load", temporary, quantize, kept]
            seconds, read, peak, shard = json.loads(subprocess.check_output(line))
            print(
                f"{quantize:>4} from {source}{' into the cache' if kept and source != 'the cache' else ''}:"
                f" {seconds:.2f} s, {read / 1e6 / seconds:.0f} MB/s, peak {peak / 2**20:.0f} MiB,"
                f" shard {shard / 2**20:.0f} MiB, {8 * shard / weights:.2f} bits per weight"
            )


if __name__ == "__main__":
    main()
